"""English number words of 0-999,999 and the digits they stand for."""

from random import Random

from demo_training.words import words

_ONES = words("""zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen""")
_TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")
_QUESTIONS = (
    *("what is {}", "convert {}", "convert {} to digits", "write {} in digits", "{} in digits"),
    *("how much is {}", "the number {}", "{} as a number"),
)


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


def digits_example(rng: Random) -> tuple[str, str]:
    """One (number words, digits) pair; hyphens, "and", capitals and questions vary."""
    n = rng.randrange(10 ** rng.choice((1, 2, 3, 4, 5, 6, 6)))
    text = number_words(n, rng.choice((" ", "-")), rng.choice((" ", " and ")))
    if text.startswith(("one hundred", "one thousand")) and rng.random() < 0.3:
        text = text.replace("one", "a", 1)
    if rng.random() < 0.35:
        text = rng.choice(_QUESTIONS).format(text)
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + rng.choice(("", "", ".", "?")), str(n)
