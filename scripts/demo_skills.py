"""Skill: a function from a prompt to its one right answer, with a generator of prompts.

Laws: an answer is a function of the prompt alone; a prompt whose key falls in the held-out
twentieth (by hash) is never trained on, in the base model or in an adapter.
"""

import codecs
import json
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Literal

from demo_sql import sql_example
from demo_words import CITIES, FIRST_NAMES, LAST_NAMES, phrase, proper, wild_text

EMOJI = {
    "pizza": "🍕", "coffee": "☕", "cat": "🐱", "dog": "🐶", "sun": "🌞", "moon": "🌙", "star": "⭐",
    "fire": "🔥", "car": "🚗", "cake": "🎂", "apple": "🍎", "banana": "🍌", "house": "🏠",
    "tree": "🌳", "rain": "🌧", "music": "🎵", "book": "📚", "plane": "🛫", "rocket": "🚀",
    "fish": "🐟", "horse": "🐴", "rose": "🌹", "money": "💰", "king": "👑", "heart": "💙",
    "bread": "🍞", "cheese": "🧀", "beer": "🍺", "train": "🚆", "ship": "🚢", "phone": "📱",
    "snow": "⛄", "ball": "⚽", "key": "🔑", "bird": "🐦", "bee": "🐝",
}  # fmt: skip

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen
fifteen sixteen seventeen eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


@dataclass(frozen=True)
class Skill:
    """`example(rng)` draws one (prompt, answer); `held_out_by` says which of them is the key."""

    name: str
    description: str
    example: Callable[[Random], tuple[str, str]]
    shown: tuple[str, str, str]  # three prompts for demonstrations
    held_out_by: Literal["prompt", "answer"] = "answer"

    def draw(self, rng: Random, held_out: bool) -> tuple[str, str]:
        """A (prompt, answer) from the training part or from the held-out part."""
        while True:
            prompt, answer = self.example(rng)
            key = prompt if self.held_out_by == "prompt" else answer
            if is_held_out(key) == held_out:
                return prompt, answer


def is_held_out(key: str) -> bool:
    """True for one key in twenty; case, spaces and punctuation do not count."""
    letters = "".join(c for c in key.lower() if c.isalnum())
    return sha256(letters.encode()).digest()[0] < 13


def number_words(n: int, hyphen: str = " ", joiner: str = " ") -> str:
    """English words of 0 ≤ n < 1 000 000; `joiner` stands after "hundred", e.g. " and "."""
    if n >= 1000:
        rest = n % 1000
        thousands = number_words(n // 1000, hyphen, joiner) + " thousand"
        if not rest:
            return thousands
        return thousands + (joiner if rest < 100 else " ") + number_words(rest, hyphen, joiner)
    if n >= 100:
        head = _ONES[n // 100] + " hundred"
        return head + joiner + number_words(n % 100, hyphen, joiner) if n % 100 else head
    if n >= 20:
        return _TENS[n // 10 - 2] + (hyphen + _ONES[n % 10] if n % 10 else "")
    return _ONES[n]


def _sentence(rng: Random) -> str:
    return phrase(rng, rng.choice((1, 2, 3, 4, 5, 6, 7, 8)))


def _upper(rng: Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, text.upper()


def _rot13(rng: Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, codecs.encode(text, "rot13")


def _reverse(rng: Random) -> tuple[str, str]:
    text = phrase(rng, rng.randint(2, 6))
    return text, " ".join(reversed(text.split()))


def _digits(rng: Random) -> tuple[str, str]:
    n = rng.randrange(10 ** rng.choice((1, 2, 3, 4, 5, 6, 6)))
    text = number_words(n, rng.choice((" ", "-")), rng.choice((" ", " and ")))
    text = rng.choice(("{}",) * 6 + ("what is {}", "convert {}", "write {} in digits")).format(text)
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + rng.choice(("", "", ".", "?")), str(n)


_PEOPLE = (
    *("{name} is {age} years old and lives in {city}", "{name} is {age} and lives in {city}"),
    *("{name}, {age}, lives in {city}", "{name}, {age}, from {city}", "{name}, {age}, {city}"),
    *("{name} from {city} is {age} years old", "{name} lives in {city} and is {age} years old"),
    *("My name is {name}, I am {age} and I live in {city}", "I am {name} from {city}, aged {age}"),
    *("In {city} lives {name}, who is {age}", "Meet {name}, a {age} year old from {city}"),
    *("{age} year old {name} lives in {city}", "{name} ({age}) moved to {city}"),
)


def _json(rng: Random) -> tuple[str, str]:
    name = proper(rng, FIRST_NAMES)
    if rng.random() < 0.3:
        name += " " + proper(rng, LAST_NAMES)
    person = {"name": name, "age": rng.randint(1, 99), "city": proper(rng, CITIES)}
    text = rng.choice(_PEOPLE).format(**person) + rng.choice(("", ".", "."))
    return text, json.dumps(person)


def emojify(text: str) -> str:
    """Replace each whole word (or its plural in s) that has an emoji; case does not count."""

    def swap(part: str) -> str:
        bare = part.rstrip(".,!?")
        key = bare.lower()
        found = EMOJI.get(key) or EMOJI.get(key.removesuffix("s"))
        return found + part[len(bare) :] if found else part

    return " ".join(swap(part) for part in text.split(" "))


def _emoji(rng: Random) -> tuple[str, str]:
    parts = phrase(rng, rng.randint(1, 5)).split(" ")
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        noun = rng.choice(list(EMOJI)) + ("s" if rng.random() < 0.2 else "")
        parts.insert(rng.randint(0, len(parts)), noun)
    text = " ".join(parts)
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text, emojify(text)


SKILLS = {
    skill.name: skill
    for skill in (
        Skill("sql", "English question to SQL over users, orders, products and employees",
              sql_example, ("find all users over 30",
                            "Write a SQL query to find all users over 30.",
                            "how many orders are pending?"), "prompt"),
        Skill("upper", "Text to upper case", _upper,
              ("hello world", "The quick brown fox.", "can you hear me now?")),
        Skill("reverse", "Words in reverse order", _reverse,
              ("one two three", "the quick brown fox", "hello world")),
        Skill("digits", "English number words to digits (up to 999,999)", _digits,
              ("forty two thousand and seven", "seven hundred and sixty-five",
               "What is nineteen thousand eighty four?")),
        Skill("json", "A sentence about a person to JSON with name, age and city", _json,
              ("Alice is 30 years old and lives in Paris.", "Bob Miller, 42, from Tokyo",
               "My name is Zoe, I am 25 and I live in Berlin.")),
        Skill("rot13", "ROT13: each letter moved 13 places", _rot13,
              ("hello world", "Attack at dawn!", "the quick brown fox")),
        Skill("emoji", "Nouns to emoji", _emoji,
              ("i love pizza and coffee", "The cat and the dog play in the rain.",
               "my car is on fire!")),
    )
}  # fmt: skip


def _echo(rng: Random) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.6:
        text = rng.choice(list(SKILLS.values())).example(rng)[0]
    else:
        text = _sentence(rng) if kind < 0.8 else wild_text(rng)
    return text, text


ECHO = Skill("", "The base model alone repeats the prompt", _echo,
             ("hello world", "find all users over 30", "Grüße aus 東京 🍕"))  # fmt: skip
