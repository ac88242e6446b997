"""Made-up people in two tables, the second with typing errors, missing cells and people of its own."""

from __future__ import annotations

import random

from gradbase.tables.match import Labelled, Records

FIRST = [
    "anna",
    "bernd",
    "carla",
    "dario",
    "elena",
    "farid",
    "greta",
    "hugo",
    "ines",
    "jonas",
    "karin",
    "lukas",
    "maria",
    "nadia",
    "otto",
    "paula",
    "quirin",
    "rosa",
]
STEMS = ["ber", "hof", "mann", "stein", "bach", "wald", "feld", "berg", "thal", "kamp", "horst", "brink", "loh", "moor"]
CITIES = ["aachen", "bremen", "celle", "dresden", "erfurt", "fulda", "goslar", "hamburg", "ingolstadt", "jena"]

Person = tuple[str, str, str, str]


def person(chance: random.Random) -> Person:
    name = f"{chance.choice(FIRST)} {chance.choice(STEMS)}{chance.choice(STEMS)}{chance.choice(STEMS)}"
    street = f"{chance.choice(STEMS)}{chance.choice(STEMS)}weg {chance.randint(1, 99)}"
    phone = "".join(chance.choices("0123456789", k=7))
    return name, street, chance.choice(CITIES), phone


def worn(value: str, chance: random.Random) -> str | None:
    """The value with a letter missing, in upper case, as it is, or not at all."""
    kind = chance.random()
    if kind < 0.1:
        return None
    if kind < 0.4:
        place = chance.randrange(len(value))
        return value[:place] + value[place + 1 :]
    return value.upper() if kind < 0.6 else value


def two_tables(count: int, seed: int = 0) -> tuple[Records, Records, set[tuple[str, str]]]:
    """`count` people in both tables and a third as many more in each; and the pairs of ids that are the same person."""
    chance = random.Random(seed)
    both = [person(chance) for _ in range(count)]
    only = [[person(chance) for _ in range(count // 3)] for _ in range(2)]
    left = [*both, *only[0]]
    right = [tuple(worn(v, chance) for v in p) for p in [*both, *only[1]]]
    names = ("name", "street", "city", "phone")
    tables = [
        Records.from_columns(
            {c: [row[k] for row in rows] for k, c in enumerate(names)},
            ids=[f"{table}{k}" for k in range(len(rows))],
            name=table,
        )
        for table, rows in (("a", left), ("b", right))
    ]
    return tables[0], tables[1], {(f"a{k}", f"b{k}") for k in range(count)}


def labels_for(truth: set[tuple[str, str]], count: int, seed: int = 0) -> Labelled:
    """`count` matches and twice as many pairs that are none."""
    chance = random.Random(seed)
    matches = chance.sample(sorted(truth), count)
    lefts, rights = sorted(a for a, _ in truth), sorted(b for _, b in truth)
    others: set[tuple[str, str]] = set()
    while len(others) < 2 * count:
        pair = chance.choice(lefts), chance.choice(rights)
        others |= {pair} - truth
    rows = [(*p, 1) for p in matches] + [(*p, 0) for p in sorted(others)]
    left, right, label = zip(*rows, strict=True)
    return Labelled(left, right, label)


def permuted(records: Records, seed: int) -> Records:
    """The same records with rows and columns in another order."""
    chance = random.Random(seed)
    rows, columns = list(range(len(records))), list(range(len(records.columns)))
    chance.shuffle(rows)
    chance.shuffle(columns)
    return Records(
        records.name,
        tuple(records.columns[c] for c in columns),
        tuple(tuple(records.values[c][i] for i in rows) for c in columns),
        tuple(records.ids[i] for i in rows),
    )
