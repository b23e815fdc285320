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

from demo_training.numbers import digits_example
from demo_training.sql import sql_example
from demo_training.words import FIRST_NAMES, LAST_NAMES, city, phrase, proper, wild_text

EMOJI = {
    "pizza": "🍕", "coffee": "☕", "cat": "🐱", "dog": "🐶", "sun": "🌞", "moon": "🌙",
    "star": "⭐", "fire": "🔥", "car": "🚗", "cake": "🎂", "apple": "🍎", "banana": "🍌",
    "house": "🏠", "tree": "🌳", "rain": "🌧", "music": "🎵", "book": "📚", "rocket": "🚀",
    "fish": "🐟", "horse": "🐴", "rose": "🌹", "money": "💰", "king": "👑", "heart": "💙",
}  # fmt: skip


@dataclass(frozen=True)
class Skill:
    """`example(rng)` draws one (prompt, answer); `held_out_by` says which of them is the key."""

    name: str
    description: str
    example: Callable[[Random], tuple[str, str]]
    shown: tuple[tuple[str, str], ...]  # (prompt, answer) to demonstrate the skill
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


def _sentence(rng: Random) -> str:
    return phrase(rng, rng.randint(1, 10) if rng.random() < 0.95 else rng.randint(12, 24))


def _upper(rng: Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, text.upper()


def _rot13(rng: Random) -> tuple[str, str]:
    text = _sentence(rng)
    return text, codecs.encode(text, "rot13")


def _reverse(rng: Random) -> tuple[str, str]:
    text = phrase(rng, rng.choice((2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9)))
    return text, " ".join(reversed(text.split()))


_PEOPLE = (
    *("{name} is {age} years old and lives in {city}", "{name} is {age} and lives in {city}"),
    *("{name}, {age}, lives in {city}", "{name}, {age}, from {city}", "{name}, {age}, {city}"),
    *("{name} from {city} is {age} years old", "{name} lives in {city} and is {age} years old"),
    *("My name is {name}, I am {age} and I live in {city}", "I am {name} from {city}, aged {age}"),
    *("In {city} lives {name}, who is {age}", "Meet {name}, a {age} year old from {city}"),
    *("{age} year old {name} lives in {city}", "{name} ({age}) moved to {city}"),
    *("My friend {name}, who is {age}, lives in {city}", "{name} is a {age} year old from {city}"),
    *("name: {name}, age: {age}, city: {city}", "I'm {name}, {age}, and I live in {city}"),
    *("{name} lives in {city}. {name} is {age}", "{name} was born in {city} and is {age} now"),
)


def _json(rng: Random) -> tuple[str, str]:
    name = proper(rng, FIRST_NAMES)
    if rng.random() < 0.3:
        name += " " + proper(rng, LAST_NAMES)
    person = {"name": name, "age": rng.randint(1, 99), "city": city(rng)}
    text = rng.choice(_PEOPLE).format(**person) + rng.choice(("", ".", "."))
    return text, json.dumps(person)


def emojify(text: str) -> str:
    """Put its emoji after each word (or plural in s) that has one; case does not count."""

    def mark(part: str) -> str:
        bare = part.rstrip(".,!?")
        key = bare.lower()
        found = EMOJI.get(key) or EMOJI.get(key.removesuffix("s"))
        return f"{bare} {found}{part[len(bare) :]}" if found else part

    return " ".join(mark(part) for part in text.split(" "))


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
        Skill(
            "sql",
            "English question to SQL over users, orders, products and employees",
            sql_example,
            (
                ("find all users over 30", "SELECT * FROM users WHERE age > 30;"),
                (
                    "Write a SQL query to find all users over 30.",
                    "SELECT * FROM users WHERE age > 30;",
                ),
                (
                    "how many orders are pending?",
                    "SELECT COUNT(*) FROM orders WHERE status = 'pending';",
                ),
            ),
            held_out_by="prompt",
        ),
        Skill(
            "upper",
            "Text to upper case",
            _upper,
            (
                ("hello world", "HELLO WORLD"),
                ("The quick brown fox.", "THE QUICK BROWN FOX."),
                ("can you hear me now?", "CAN YOU HEAR ME NOW?"),
            ),
        ),
        Skill(
            "reverse",
            "Words in reverse order",
            _reverse,
            (
                ("hello world", "world hello"),
                ("the quick brown fox", "fox brown quick the"),
                ("one two three four", "four three two one"),
            ),
        ),
        Skill(
            "digits",
            "English number words, up to 999,999, to digits",
            digits_example,
            (
                ("forty two thousand and seven", "42007"),
                ("seven hundred and sixty-five", "765"),
                ("What is nineteen thousand eighty four?", "19084"),
            ),
        ),
        Skill(
            "json",
            "A sentence about a person to JSON with name, age and city",
            _json,
            (
                (
                    "Alice is 30 years old and lives in Paris.",
                    '{"name": "Alice", "age": 30, "city": "Paris"}',
                ),
                (
                    "Bob Miller, 42, from Tokyo",
                    '{"name": "Bob Miller", "age": 42, "city": "Tokyo"}',
                ),
                (
                    "My name is Zoe, I am 25 and I live in Berlin.",
                    '{"name": "Zoe", "age": 25, "city": "Berlin"}',
                ),
            ),
        ),
        Skill(
            "rot13",
            "ROT13: each letter moved 13 places",
            _rot13,
            (
                ("hello world", "uryyb jbeyq"),
                ("Attack at dawn!", "Nggnpx ng qnja!"),
                ("the quick brown fox", "gur dhvpx oebja sbk"),
            ),
        ),
        Skill(
            "emoji",
            "An emoji after each noun that has one",
            _emoji,
            (
                ("i love pizza and coffee", "i love pizza 🍕 and coffee ☕"),
                ("The cat and the dog play.", "The cat 🐱 and the dog 🐶 play."),
                ("my car is on fire!", "my car 🚗 is on fire 🔥!"),
            ),
        ),
    )
}


def _echo(rng: Random) -> tuple[str, str]:
    kind = rng.random()
    if kind < 0.6:
        text = rng.choice(list(SKILLS.values())).draw(rng, held_out=False)[0]
    else:
        text = _sentence(rng) if kind < 0.8 else wild_text(rng)
    return text, text


ECHO = Skill(
    "",
    "The base model alone repeats the prompt",
    _echo,
    tuple((text, text) for text in ("hello world", "find all users over 30", "Grüße aus 東京 🍕")),
)
