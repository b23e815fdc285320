"""English questions over a small shop schema, and the SQL that answers them.

Tables: users(name, email, age, city), orders(product, quantity, total, status),
products(name, price, stock, category), employees(name, salary, department, age).
"""

from dataclasses import dataclass
from random import Random

from demo_training.words import FIRST_NAMES, city, proper, pseudo_word


@dataclass(frozen=True)
class _Table:
    name: str
    columns: dict[str, str]  # column → its English plural
    numbers: tuple[str, ...]
    greater: dict[str, tuple[str, ...]]  # column → English ways to say "more than {n}"
    less: dict[str, tuple[str, ...]]
    equals: dict[str, tuple[str, ...]]  # text column → English ways to say "is {v}"


_VALUES = {
    "status": ("shipped", "pending", "paid", "cancelled", "delivered", "open"),
    "category": ("books", "toys", "food", "garden", "music", "shoes", "tools"),
    "department": ("sales", "marketing", "finance", "engineering", "support", "legal"),
}

_AGE_OVER = ("over {n}", "older than {n}", "above {n}", "who are over {n}", "aged over {n}")
_AGE_UNDER = ("under {n}", "younger than {n}", "below {n}", "who are under {n}")

TABLES = (
    _Table(
        "users",
        {"name": "names", "email": "emails", "age": "ages", "city": "cities"},
        ("age",),
        {"age": _AGE_OVER},
        {"age": _AGE_UNDER},
        {
            "city": ("from {v}", "in {v}", "who live in {v}", "living in {v}"),
            "name": ("named {v}", "called {v}", "with name {v}"),
        },
    ),
    _Table(
        "orders",
        {"product": "products", "quantity": "quantities", "total": "totals", "status": "statuses"},
        ("total", "quantity"),
        {"total": ("over {n}", "above {n}", "worth more than {n}")},
        {"total": ("under {n}", "below {n}", "worth less than {n}")},
        {"status": ("that are {v}", "with status {v}", "which are {v}")},
    ),
    _Table(
        "products",
        {"name": "names", "price": "prices", "stock": "stocks", "category": "categories"},
        ("price", "stock"),
        {"price": ("over {n}", "above {n}", "costing more than {n}", "that cost more than {n}")},
        {"price": ("under {n}", "below {n}", "cheaper than {n}", "costing less than {n}")},
        {"category": ("in category {v}", "in the {v} category", "of category {v}")},
    ),
    _Table(
        "employees",
        {"name": "names", "salary": "salaries", "department": "departments", "age": "ages"},
        ("salary", "age"),
        {"salary": ("earning more than {n}", "who earn more than {n}"), "age": _AGE_OVER},
        {"salary": ("earning less than {n}", "who earn less than {n}"), "age": _AGE_UNDER},
        {"department": ("in {v}", "from {v}", "who work in {v}")},
    ),
)

_VERBS = (
    *("find", "find", "find", "show", "show me", "list", "list", "get", "give me", "select"),
    *("fetch", "return", "display", "i want", "please find", "please list", "look up"),
)
_WRAPPERS = (
    *("write a sql query to {}", "write a query to {}", "write sql to {}", "sql query to {}"),
    *("how do i {}", "can you {}", "sql to {}", "i need to {}", "generate sql to {}"),
)
_AGGREGATES = {
    "AVG": ("average", "mean"),
    "MAX": ("maximum", "highest", "largest"),
    "MIN": ("minimum", "lowest", "smallest"),
    "SUM": ("total", "sum of the"),
}


def _number(rng: Random) -> int:
    return rng.choice((rng.randint(1, 99), rng.randint(1, 99), rng.randint(100, 9999)))


def _value(rng: Random, column: str) -> str:
    """A text value, known or invented: it is copied from the question, not recalled."""
    if column in _VALUES:
        return rng.choice(_VALUES[column]) if rng.random() < 0.7 else pseudo_word(rng)
    value = city(rng) if column == "city" else proper(rng, FIRST_NAMES)
    return value.lower() if rng.random() < 0.2 else value


def _condition(rng: Random, table: _Table, text: bool) -> tuple[str, str]:
    """(English, SQL) of one condition."""
    if text:
        column = rng.choice(list(table.equals))
        value = _value(rng, column)
        return rng.choice(table.equals[column]).format(v=value), f"{column} = '{value}'"
    n = _number(rng)
    if rng.random() < 0.3:
        column = rng.choice(table.numbers)
        sign, phrases = rng.choice(
            (
                (">", ("greater than", "over", "above", "more than", ">")),
                ("<", ("less than", "under", "below", "<")),
                ("=", ("equal to", "of", "=")),
            )
        )
        return f"with {column} {rng.choice(phrases)} {n}", f"{column} {sign} {n}"
    sign, forms = rng.choice(((">", table.greater), ("<", table.less)))
    column = rng.choice(list(forms))
    return rng.choice(forms[column]).format(n=n), f"{column} {sign} {n}"


def _where(rng: Random, table: _Table, chance: float) -> tuple[str, str]:
    """(English, SQL) of no, one or two conditions, each with a leading space."""
    if rng.random() > chance:
        return "", ""
    text = rng.random() < 0.4
    english, sql = _condition(rng, table, text)
    if rng.random() < 0.2:
        other_english, other_sql = _condition(rng, table, not text)
        english += rng.choice((" ", " and ")) + other_english
        sql += " AND " + other_sql
    return " " + english, " WHERE " + sql


def _rows(rng: Random) -> tuple[str, str]:
    """Questions that list rows."""
    table = rng.choice(TABLES)
    english, where = _where(rng, table, 0.85)
    noun, columns = rng.choice(("", "all ", "all ", "the ", "all the ")) + table.name, "*"
    if rng.random() < 0.25:
        chosen = rng.sample(list(table.columns), rng.choice((1, 1, 2)))
        names = " and ".join(table.columns[c] for c in chosen)
        noun = f"{rng.choice(('the ', ''))}{names} of {rng.choice(('', 'all '))}{table.name}"
        columns = ", ".join(chosen)
    tail = ""
    if rng.random() < 0.15:
        column = rng.choice(table.numbers)
        down = rng.random() < 0.5
        english += rng.choice((" sorted by ", " ordered by ")) + column
        english += rng.choice((" descending", " in descending order")) if down else ""
        tail = f" ORDER BY {column}" + (" DESC" if down else "")
    sql = f"SELECT {columns} FROM {table.name}{where}{tail};"
    return _dress(rng, noun + english), sql


def _numbers(rng: Random) -> tuple[str, str]:
    """Questions whose answer is one number, and rankings."""
    table = rng.choice(TABLES)
    english, where = _where(rng, table, 0.6)
    column = rng.choice(table.numbers)
    kind = rng.random()
    if kind < 0.3:
        asked = rng.choice(("how many {}", "count the {}", "count all {}", "the number of {}"))
        if asked.startswith("how"):
            english = _as_question(rng, english)
        return asked.format(table.name) + english, f"SELECT COUNT(*) FROM {table.name}{where};"
    if kind < 0.7:
        function = rng.choice(list(_AGGREGATES))
        asked = f"the {rng.choice(_AGGREGATES[function])} {column} of {table.name}{english}"
        start = rng.choice(("", "what is ", "find ", "get ", "show "))
        return start + asked, f"SELECT {function}({column}) FROM {table.name}{where};"
    n = rng.randint(1, 20)
    asked = f"the top {n} {table.name}{english} by {column}"
    return _dress(rng, asked), (
        f"SELECT * FROM {table.name}{where} ORDER BY {column} DESC LIMIT {n};"
    )


def _as_question(rng: Random, english: str) -> str:
    """ "how many users" continues "are over 30" or "over 30", not only "who are over 30"."""
    if not english:
        return " are there"
    for pronoun in (" who ", " that ", " which "):
        if english.startswith(pronoun) and rng.random() < 0.8:
            return " " + english.removeprefix(pronoun)
    return english


def _dress(rng: Random, question: str) -> str:
    if rng.random() < 0.1:
        return question
    question = f"{rng.choice(_VERBS)} {question}"
    return rng.choice(_WRAPPERS).format(question) if rng.random() < 0.25 else question


def sql_example(rng: Random) -> tuple[str, str]:
    """One (English, SQL) pair; capitals, final punctuation and politeness vary."""
    english, sql = (_rows if rng.random() < 0.75 else _numbers)(rng)
    english = english.replace(" sql ", rng.choice((" SQL ", " sql "))).strip()
    if rng.random() < 0.5:
        english = english[0].upper() + english[1:]
    return english + rng.choice(("", "", "", ".", ".", "?")), sql
