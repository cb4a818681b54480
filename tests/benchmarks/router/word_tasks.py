"""Families about words: copying, letters, antonyms, forms, formats, classes."""

from __future__ import annotations

from family import Case, Dice, Family, words

COMMON = words(
    "apple river stone green happy window dog table cloud paper music garden bread light house "
    "water chair tree school road ship king bird fish snow fire salt door hand book moon star "
    "train plane clock horse milk sugar coat shoe hill lake farm ring cup"
)
LETTERS = "BCDFGHJKLMNPQRSTVWXZ"


def _code(dice: Dice, length: int) -> str:
    return "".join(dice.any(LETTERS + "23456789") for _ in range(length))


def _copy(dice: Dice, level: int) -> Case:
    match level:
        case 1:
            text = " ".join(dice.some(COMMON, 3))
        case 2:
            text = " ".join(dice.some(COMMON, 8))
        case 3:
            text = "-".join(_code(dice, 3) for _ in range(3))
        case 4:
            text = " ".join(str(dice.number(100, 999)) for _ in range(7))
        case _:
            text = _code(dice, 20)
    return Case({"text": text}, text)


LONG = words(
    "planet window orange silver garden market yellow bottle camera doctor engine farmer guitar "
    "hammer island jacket kitten ladder mirror needle office pencil rabbit saddle ticket violin"
)


def _letters(dice: Dice, level: int) -> Case:
    word = dice.pick(COMMON if level == 4 else LONG)
    task, answer = (
        (f"Write the word {word} in capital letters", word.upper()),
        (f"Name the first letter of {word}", word[0]),
        (f"Name the second letter of {word}", word[1]),
        (f"Name the last letter of {word}", word[-1]),
        (f"Name the last two letters of {word}", word[-2:]),
    )[level - 1]
    return Case({"task": task, "low": task[0].lower() + task[1:]}, answer)


ANTONYMS = (
    "hot cold, big small, up down, good bad, day night, yes no, old new, black white, in out, "
    "left right, open closed, happy sad",
    "fast slow, high low, rich poor, full empty, early late, hard soft, wet dry, strong weak, "
    "long short, near far, light dark, clean dirty",
    "buy sell, win lose, push pull, love hate, begin end, give take, laugh cry, rise fall, "
    "remember forget, accept reject, arrive depart, build destroy",
    "brave cowardly, polite rude, generous stingy, ancient modern, smooth rough, sharp dull, "
    "shallow deep, cheap expensive, public private, victory defeat, guilty innocent, noisy "
    "quiet",
    "expand contract, maximum minimum, scarce abundant, rigid flexible, temporary permanent, "
    "artificial natural, optimist pessimist, transparent opaque, humble arrogant, export "
    "import, voluntary compulsory, ascend descend",
)


def _antonym(dice: Dice, level: int) -> Case:
    a, b = dice.pick([pair.split() for pair in ANTONYMS[level - 1].split(", ")])
    if dice.number(0, 1):
        a, b = b, a
    return Case({"word": a}, b)


# task, then word and answer pairs: a row a level.
FORMS = (
    (
        "plural",
        "cat cats, dog dogs, car cars, tree trees, book books, chair chairs, cloud clouds, river "
        "rivers, hand hands, apple apples, window windows, table tables",
    ),
    (
        "plural",
        "city cities, box boxes, baby babies, bus buses, lady ladies, dish dishes, fox foxes, "
        "story stories, church churches, party parties, glass glasses, country countries",
    ),
    (
        "past tense",
        "go went, eat ate, see saw, run ran, take took, give gave, come came, write wrote, drink "
        "drank, speak spoke, buy bought, think thought",
    ),
    (
        "plural",
        "child children, man men, foot feet, mouse mice, tooth teeth, leaf leaves, wolf wolves, "
        "goose geese, knife knives, woman women, ox oxen, thief thieves",
    ),
    (
        "past participle",
        "swim swum, ring rung, freeze frozen, weave woven, shrink shrunk, tear torn, bear borne, "
        "forbid forbidden, stride stridden, strive striven, tread trodden, slay slain",
    ),
)


def _form(dice: Dice, level: int) -> Case:
    form, pairs = FORMS[level - 1]
    word, answer = dice.pick([pair.split() for pair in pairs.split(", ")])
    return Case({"form": form, "word": word}, answer)


def _format(dice: Dice, level: int) -> Case:
    words = dice.some(COMMON, 3)
    rule, answer = (
        ("separated by hyphens", "-".join(words)),
        ("each in quotes, separated by commas", ", ".join(f'"{word}"' for word in words)),
        ("in capital letters, separated by slashes", "/".join(words).upper()),
        ("as a numbered list", "\n".join(f"{i}. {word}" for i, word in enumerate(words, 1))),
        ("in reverse order, separated by commas", ", ".join(reversed(words))),
    )[level - 1]
    return Case({"words": ", ".join(words), "rule": rule}, answer)


CLASSES = {
    "animal": words("dog cat horse tiger rabbit sheep wolf lizard camel otter heron newt"),
    "fruit": words("apple banana grape pear lemon peach mango plum cherry papaya quince lychee"),
    "tool": words("hammer saw drill axe pliers chisel shovel wrench rake mallet trowel awl"),
    "color": words("red blue green yellow purple pink brown violet scarlet maroon teal ochre"),
    "vehicle": words("car bus train truck bicycle tram ferry sled canoe barge gondola rickshaw"),
}


def _yes_no(dice: Dice, level: int) -> Case:
    kind = dice.any(list(CLASSES))
    true = dice.number(0, 1)
    other = kind if true else dice.any([k for k in CLASSES if k != kind])
    word = CLASSES[kind][(level - 1) * 2 + dice.number(0, 3)]
    article = "an" if other[0] in "aeiou" else "a"
    return Case(
        {"word": word, "kind": f"{article} {other}"}, "Yes" if true else "No", ("Yes", "No")
    )


FAMILIES = (
    Family("copy", "exact", 48, 1, _copy, """
        Repeat exactly: {text} | {text}
        Copy this text: {text} | {text}
        Say the following and nothing else: {text} | {text}
        Write again: {text} | {text}
        {text} -- please echo that. | {text}
        Type out: {text} | {text}
        Reproduce this line: {text} | {text}
        Read it back to me: {text} | {text}
        Return the input unchanged. Input: {text} | {text}
        The password is {text}. Repeat the password. | {text}
    """),
    Family("letters", "exact", 32, 2, _letters, """
        {task}. | {answer}
        Please {low}. | {answer}
        Task: {low}. | {answer}
        Can you {low}? | {answer}
        I want you to {low}. | {answer}
        {task}, please. | {answer}
        Do this: {low}. | {answer}
        Your job is to {low}. | {answer}
        Now {low}. | {answer}
        {task} and say nothing else. | {answer}
    """),
    Family("antonym", "lenient", 24, 2, _antonym, """
        What is the opposite of {word}? | The opposite of {word} is {answer}.
        Give an antonym of {word}. | {answer}
        The opposite of {word} is | {answer}
        Name the contrary of {word}. | The contrary of {word} is {answer}.
        Which word means the reverse of {word}? | {answer}
        Say the opposite: {word} | {answer}
        {word} is the opposite of what? | {word} is the opposite of {answer}.
        Find a word with the opposite meaning of {word}. | {answer}
        Antonym for "{word}"? | The antonym is {answer}.
        If it is not {word}, it is | If it is not {word}, it is {answer}.
    """),
    Family("forms", "lenient", 24, 2, _form, """
        What is the {form} of {word}? | The {form} of {word} is {answer}.
        Give the {form} of {word}. | {answer}
        {word}, {form}: | {answer}
        Write the {form} of the word {word}. | The {form} is {answer}.
        Which is the {form} of "{word}"? | The {form} of "{word}" is "{answer}".
        Form the {form}: {word} | {word} - {answer}
        Tell me the {form} of {word}. | {word} becomes {answer}.
        In English, the {form} of {word} is | {answer}
        I am learning English. What is the {form} of {word}? | It is {answer}.
        Change {word} to its {form}. | {word} changes to {answer}.
    """),
    Family("format", "exact", 40, 2, _format, """
        Write the words {words} {rule}. | {answer}
        Give me {words} {rule}. | {answer}
        Words: {words}. Show them {rule}. | {answer}
        Print {words} {rule}. | {answer}
        List {words} {rule}. | {answer}
        Format {words} {rule}. | {answer}
        I need {words} {rule}. | {answer}
        Take {words} and write them {rule}. | {answer}
        Present these words {rule}: {words} | {answer}
        Output only the words {words}, {rule}. | {answer}
    """),
    Family("yes-no", "lenient", 24, 2, _yes_no, """
        Is {word} {kind}? | {answer}
        True or false, yes or no: {word} is {kind}. | {answer}
        Answer yes or no: is {word} {kind}? | {answer}
        Would you call {word} {kind}? | {answer}
        Do people say that {word} is {kind}? | {answer}
        Is it right that {word} is {kind}? | {answer}
        {word} is {kind}. Yes or no? | {answer}
        Can {word} be described as {kind}? | {answer}
        Check: {word} is {kind}. Reply yes or no. | {answer}
        Tell me yes or no. Is {word} {kind}? | {answer}
    """),
)  # fmt: skip
