"""Families about a text at hand: looking up, extracting, JSON, earlier turns, what is not there."""

from __future__ import annotations

import json

from family import Case, Dice, Family, words

NAMES = words(
    "Anna Ben Carl Dora Emil Fay Gus Hana Ivan Jana Kurt Lena Milo Nora Otto Pia Quinn Rosa Sam "
    "Tina Udo Vera Will Xenia Yann Zoe"
)
THINGS = words("coat bag hat car bike cup pen kite boat scarf")
HUES = words("red blue green yellow black white brown pink gray purple orange")
TOWNS = words("Oslo Lima Cairo Boston Dublin Quito Turin Perth Hanoi Basel Porto Kyoto")
JOBS = words("nurse pilot baker teacher farmer lawyer painter plumber singer waiter")


def _lookup(dice: Dice, level: int) -> Case:
    count = (2, 3, 5, 7, 10)[level - 1]
    names, thing = dice.some(NAMES, count), dice.any(THINGS)
    hues = dice.some(HUES, count)
    facts = " ".join(f"{n} has a {h} {thing}." for n, h in zip(names, hues, strict=True))
    i = dice.number(0, count - 1) if level < 5 else dice.number(2, count - 3)
    return Case({"facts": facts, "name": names[i], "thing": thing}, hues[i], choices=tuple(hues))


def _unanswerable(dice: Dice, level: int) -> Case:
    """Half of the questions are about somebody who is not in the text."""
    names, thing = dice.some(NAMES, level + 2), dice.any(THINGS)
    hues = dice.some(HUES, level + 1)
    facts = " ".join(f"{n} has a {h} {thing}." for n, h in zip(names[:-1], hues, strict=True))
    known = bool(dice.number(0, 1))
    i = dice.number(0, level) if known else -1
    fields = {"facts": facts, "name": names[i], "thing": thing}
    answer = rf"(?i).*\b{hues[i]}\b.*" if known else UNKNOWN
    return Case({**fields, "said": hues[i].capitalize() if known else "I don't know"}, answer)


# A strict answer says only that; a lenient one says it somewhere.
UNKNOWN = (
    r"(?i)((i|we) )?(do not|don't|cannot|can't) (know|say|tell|find|answer).*"
    r"|(?i:.*\b(does not|doesn't|is not|isn't|not|no) (say|mention|mentioned|given|stated|known|"
    r"specified|provided|information|told|clear)\b.*)|(?i:unknown\.?)"
)


def _person(dice: Dice) -> tuple[str, int, str, str]:
    return dice.any(NAMES), dice.number(18, 80), dice.any(TOWNS), dice.any(JOBS)


def _json(dice: Dice, level: int) -> Case:
    name, age, town, job = _person(dice)
    member = bool(dice.number(0, 1))
    text, value = (
        (f"{name} is here.", {"name": name}),
        (f"{name} is {age} years old.", {"name": name, "age": age}),
        (f"{name}, {age}, lives in {town}.", {"name": name, "age": age, "town": town}),
        (
            f"The {job} {name} from {town} is {age} and {'is' if member else 'is not'} a member.",
            {"name": name, "age": age, "job": job, "member": member},
        ),
        (
            f"{name} ({age}) works as a {job} and lives at {age + 3} Mill Road in {town}.",
            {"name": name, "job": job, "address": {"number": age + 3, "town": town}},
        ),
    )[level - 1]
    return Case({"text": text, "keys": ", ".join(value)}, json.dumps(value))


def _extract(dice: Dice, level: int) -> Case:
    name, age, town, job = _person(dice)
    phone = f"{dice.number(200, 999)}-{dice.number(1000, 9999)}"
    mail = f"{name.lower()}{dice.number(10, 99)}@{town.lower()}.org"
    code = f"{dice.any('ABCDEF')}{dice.number(100, 999)}"
    kind, text, answer = (
        ("phone number", f"Call {name} at {phone}.", phone),
        ("email address", f"Hi, this is {name} from {town}. Write to {mail} soon.", mail),
        ("town", f"{name}, a {job} of {age}, moved to {town} last year.", town),
        ("order code", f"{name} ({phone}) asked about order {code} on May {age % 28 + 1}.", code),
        (
            "age",
            f"Ticket {code} by {name}, {job}, aged {age}, {dice.number(2, 16)} Lake Road, {town}, "
            f"room {dice.number(100, 400)}.",
            str(age),
        ),
    )[level - 1]
    return Case({"text": text, "kind": kind}, answer)


def _turns(dice: Dice, level: int) -> Case:
    """What the assistant is told first and asked for later; `turns` is the talk between."""
    names, hues = dice.some(NAMES, level), dice.some(HUES, level)
    thing = dice.any(THINGS)
    told = " ".join(f"{n}'s {thing} is {h}." for n, h in zip(names, hues, strict=True))
    i = dice.number(0, level - 1)
    return Case({"told": told, "name": names[i], "thing": thing}, hues[i], choices=tuple(hues))


FAMILIES = (
    Family("lookup", "lenient", 32, 1, _lookup, """
        {facts} What color is {name}'s {thing}? | {name}'s {thing} is {answer}.
        Text: {facts} Question: What is the color of the {thing} of {name}? | {answer}
        {facts} The {thing} of {name} is which color? | The {thing} of {name} is {answer}.
        Read: {facts} Now say the color of {name}'s {thing}. | {answer}
        Given that {facts} What color does {name} have? | {name} has {answer}.
        Question: which color is {name}'s {thing}? Facts: {facts} | {name}'s {thing} is {answer}.
        {facts} Complete: {name} has a ... {thing}. | {name} has a {answer} {thing}.
        Notes: {facts} Tell me about the {thing} that {name} has. | {name} has a {answer} {thing}.
        Here is a list. {facts} Look up {name}. | {name}: {answer}
        {facts} Which color belongs to {name}? | {answer} belongs to {name}.
    """),
    Family("json", "json", 64, 1, _json, """
        Extract {keys} as JSON: {text} | {answer}
        Make a JSON object with {keys} from this: {text} | {answer}
        {text} Give JSON with the keys {keys}. | {answer}
        Turn into JSON ({keys}): {text} | {answer}
        Parse this sentence to JSON. Keys: {keys}. Sentence: {text} | {answer}
        Text: {text} JSON fields: {keys}. | {answer}
        Return only JSON with {keys} for: {text} | {answer}
        Fill a record with {keys}. Source: {text} | {answer}
        Read "{text}" and output JSON having {keys}. | {answer}
        As JSON please, with {keys}: {text} | {answer}
    """),
    Family("extract", "exact", 32, 2, _extract, """
        Find the {kind}: {text} | {answer}
        What is the {kind} in this text? {text} | {answer}
        {text} Give me only the {kind}. | {answer}
        Extract the {kind} from: {text} | {answer}
        Text: {text} The {kind} is | {answer}
        Which {kind} is named here? {text} | {answer}
        Get {kind} << {text} | {answer}
        Look for the {kind} in "{text}" | {answer}
        I am searching for the {kind}. {text} | {answer}
        Message: {text} Copy the {kind}. | {answer}
    """),
    Family("unanswerable", "regex", 24, 2, _unanswerable, """
        {facts} What color is {name}'s {thing}? | {said}
        {facts} Color of {name}'s {thing}? Or "I don't know". | {said}
        {facts} What color is the {thing} of {name}? If not there, say "I don't know". | {said}
        Read: {facts} What about the {thing} of {name}? | {said}
        Only use these facts. {facts} What color does {name}'s {thing} have? | {said}
        {facts} Do you know the color of {name}'s {thing}? | {said}
        Answer from the text or say "I don't know". {facts} {name}'s {thing} is | {said}
        Notes: {facts} Is there information about the {thing} of {name}? | {said}
        {facts} I ask about {name}, who may not be in the list. Which color? | {said}
        Facts: {facts} And {name}'s {thing}? Say "I don't know" if it is missing. | {said}
    """),
    Family("turns", "lenient", 32, 0, _turns, """
        What color is {name}'s {thing}? | {told}
        And which color was the {thing} of {name}? | Remember this. {told}
        Tell me again the color of {name}'s {thing}. | Please note: {told}
        Now, {name}'s {thing} is which color? | {told} Keep it in mind.
        Back to {name}. What color is the {thing}? | Here is what I know. {told}
        So what is the color of the {thing} {name} has? | {told}
        {name}'s {thing}: color? | For later: {told}
        I forgot the color of {name}'s {thing}. Which is it? | I tell you a secret. {told}
        Complete: {name}'s {thing} is | {told} Got it?
        Can you say the color of {name}'s {thing}? | {told} I will ask you about it.
    """),
)  # fmt: skip
