"""Families about numbers: sums, products, the largest, sequences, words, units, sorting."""

from __future__ import annotations

from family import Case, Dice, Family, words

ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
TENS = words("_ _ twenty thirty forty fifty sixty seventy eighty ninety")


def _add(dice: Dice, level: int) -> Case:
    low, high = ((1, 9), (1, 9), (11, 49), (100, 499), (100, 999))[level - 1]
    a, b = dice.number(low, high), dice.number(low, high)
    if level == 2:
        a += 10 * dice.number(1, 5)
    if level == 4:
        b = dice.number(11, 99)
    if level == 5 and dice.number(0, 1):
        a, b = max(a, b), min(a, b)
        return Case({"a": a, "b": b, "sign": "-", "word": "minus"}, str(a - b))
    return Case({"a": a, "b": b, "sign": "+", "word": "plus"}, str(a + b))


def _times(dice: Dice, level: int) -> Case:
    pairs = (
        ((2, 9), (1, 2)),
        ((2, 9), (2, 5)),
        ((3, 9), (3, 9)),
        ((11, 19), (3, 6)),
        ((12, 29),) * 2,
    )
    (a_low, a_high), (b_low, b_high) = pairs[level - 1]
    a, b = dice.number(a_low, a_high), dice.number(b_low, b_high)
    if level == 1 and dice.number(0, 1):
        b = 10
    return Case({"a": a, "b": b}, str(a * b))


def _compare(dice: Dice, level: int) -> Case:
    count = (2, 3, 3, 4, 5)[level - 1]
    top = (20, 50, 200, 900, 9000)[level - 1]
    values = dice.some(range(2, top), count)
    listed = ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
    return Case({"list": listed}, str(max(values)), choices=tuple(map(str, values)))


def _sequence(dice: Dice, level: int) -> Case:
    start = dice.number(1, 9)
    step = (1, dice.any([2, 5, 10]), dice.any([3, 4]), -dice.any([2, 3]), 0)[level - 1]
    start += (0, 0, 3, 40, 0)[level - 1]
    if level == 5 and dice.number(0, 1):
        terms = [start * 2**i for i in range(6)]
    elif level == 5:
        first = dice.number(6, 9)
        terms = [start + i * first for i in range(6)]
    else:
        terms = [start + i * step for i in range(6)]
    return Case({"list": ", ".join(map(str, terms[:-1]))}, str(terms[-1]))


def in_words(n: int) -> str:
    """English, without "and"."""
    if n < 20:
        return ONES[n]
    if n < 100:
        return TENS[n // 10] + (f"-{ONES[n % 10]}" if n % 10 else "")
    unit, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
    rest = n % unit
    return f"{in_words(n // unit)} {name}" + (f" {in_words(rest)}" if rest else "")


def _number_words(dice: Dice, level: int) -> Case:
    low, high = ((1, 12), (21, 99), (101, 999), (1001, 9999), (10_001, 99_999))[level - 1]
    n = dice.number(low, high)
    words = in_words(n)
    return Case({"n": n}, words, also=(words.replace("hundred ", "hundred and "),))


def _digits(dice: Dice, level: int) -> Case:
    low, high = ((1, 12), (13, 99), (101, 999), (1001, 9999), (10_001, 99_999))[level - 1]
    n = dice.number(low, high)
    return Case({"words": in_words(n)}, str(n))


# unit, smaller unit, how many of them: a row a level.
UNITS = (
    (("kilometers", "meters", 1000), ("meters", "centimeters", 100)),
    (("hours", "minutes", 60), ("minutes", "seconds", 60)),
    (("days", "hours", 24), ("weeks", "days", 7)),
    (("feet", "inches", 12), ("pounds", "ounces", 16)),
    (("miles", "feet", 5280), ("yards", "inches", 36)),
)


def _units(dice: Dice, level: int) -> Case:
    big, small, factor = dice.any(UNITS[level - 1])
    n = dice.number(2, 9)
    return Case({"n": n, "big": big, "small": small}, str(n * factor))


def _sort(dice: Dice, level: int) -> Case:
    count, top = ((2, 30), (3, 30), (4, 50), (5, 99), (6, 900))[level - 1]
    values = dice.some(range(1, top), count)
    if values == sorted(values):
        values.reverse()
    return Case({"list": ", ".join(map(str, values))}, ", ".join(map(str, sorted(values))))


FAMILIES = (
    Family("add", "number", 24, 2, _add, """
        What is {a} {sign} {b}? | {a} {sign} {b} = {answer}
        Compute {a} {word} {b}. | {a} {word} {b} is {answer}.
        {a} {sign} {b} = | {answer}
        How much is {a} {word} {b}? | {a} {word} {b} is {answer}.
        Please work out {a} {sign} {b}. | {a} {sign} {b} = {answer}
        Calculate: {a} {sign} {b} | {a} {sign} {b} = {answer}
        Solve for x: x = {a} {sign} {b} | x = {answer}
        Tell me the result of {a} {word} {b}. | The result of {a} {word} {b} is {answer}.
        Give the value of {a} {sign} {b}. | The value is {answer}.
        I need {a} {word} {b}. | {a} {word} {b} equals {answer}.
    """),
    Family("times", "number", 24, 2, _times, """
        What is {a} x {b}? | {a} x {b} = {answer}
        Compute {a} times {b}. | {a} times {b} is {answer}.
        {a} * {b} = | {answer}
        Multiply {a} by {b}. | {a} x {b} = {answer}
        How much is {a} times {b}? | {a} times {b} is {answer}.
        Find the product of {a} and {b}. | The product of {a} and {b} is {answer}.
        Calculate {a} * {b}. | {a} * {b} = {answer}
        There are {a} boxes of {b} apples. How many apples? | {a} x {b} = {answer} apples
        What do you get for {a} multiplied by {b}? | {a} multiplied by {b} is {answer}.
        {a} rows of {b} chairs make how many chairs? | {a} rows of {b} chairs make {answer} chairs.
    """),
    Family("compare", "number", 24, 2, _compare, """
        Which is the largest: {list}? | The largest is {answer}.
        Name the biggest of {list}. | The biggest is {answer}.
        Of {list}, which number is greatest? | {answer}
        Find the maximum of {list}. | The maximum is {answer}.
        Which of these is highest: {list}? | The highest is {answer}.
        What is the max of {list}? | {answer}
        Look at {list}. Say the largest one. | {answer}
        Which number is bigger than the others: {list}? | {answer} is the biggest: {answer}
        Pick the greatest number from {list}. | The greatest number is {answer}.
        Among {list}, the top value is? | The top value is {answer}.
    """),
    Family("sequence", "number", 32, 2, _sequence, """
        What comes next: {list}? | {list}, {answer}
        Continue the sequence by one number: {list} | {list}, {answer}
        {list}, ... | {answer}
        Which number follows {list}? | After {list} comes {answer}.
        Give the next term of {list}. | The next term is {answer}.
        Find the next number in this pattern: {list} | {list}, {answer}
        Complete: {list}, ? | {list}, {answer}
        The numbers are {list}. What is the next one? | The next one is {answer}.
        I count {list}. Go on with one more. | {answer}
        Add one number to the series {list}. | {list}, {answer}
    """),
    Family("number-words", "lenient", 32, 2, _number_words, """
        Write {n} in words. | {answer}
        Spell out the number {n}. | {n} is {answer}.
        How do you write {n} in English words? | {n} is written {answer}.
        {n} in words: | {answer}
        Say {n} with letters. | {n} is {answer}.
        Turn the digits {n} into words. | {answer}
        What is {n} spelled out? | {n} spelled out is {answer}.
        Convert {n} to words. | {n} = {answer}
        On a check I must write {n} in words. | {answer}
        Read the number {n} aloud. | {answer}
    """),
    Family("digits", "number", 24, 2, _digits, """
        Write {words} in digits. | {answer}
        Which number is {words}? | {words} is {answer}.
        Convert "{words}" to a number. | {words} = {answer}
        {words} as digits: | {answer}
        Give the digits of {words}. | {words} is {answer}.
        How is {words} written with digits? | {words} is written {answer}.
        Turn the words {words} into a number. | {answer}
        Type {words} as a number. | {answer}
        The clerk says "{words}". Note the number. | {answer}
        In figures, {words} is? | In figures, {words} is {answer}.
    """),
    Family("units", "number", 32, 2, _units, """
        How many {small} are in {n} {big}? | {n} {big} = {answer} {small}
        Convert {n} {big} to {small}. | {n} {big} are {answer} {small}.
        {n} {big} = ? {small} | {n} {big} = {answer} {small}
        Express {n} {big} in {small}. | {n} {big} is {answer} {small}.
        Change {n} {big} into {small}. | {n} {big} = {answer} {small}
        What is {n} {big} in {small}? | {n} {big} is {answer} {small}.
        I have {n} {big}. How many {small} is that? | That is {answer} {small}.
        Give {n} {big} as {small}. | {answer} {small}
        {n} {big} make how many {small}? | {n} {big} make {answer} {small}.
        Please tell me {n} {big} in {small}. | {n} {big} equal {answer} {small}.
    """),
    Family("sort", "exact", 40, 2, _sort, """
        Sort from small to large: {list} | {answer}
        Put these numbers in order: {list} | {answer}
        Order {list} from lowest to highest. | {answer}
        Arrange {list} in increasing order. | {answer}
        Sort this list: {list} | {answer}
        Write {list} again, smallest first. | {answer}
        Sort ascending: {list} | {answer}
        The numbers {list} are mixed up. Sort them. | {answer}
        Rearrange so that the numbers grow: {list} | {answer}
        sorted([{list}]) | {answer}
    """),
)  # fmt: skip
