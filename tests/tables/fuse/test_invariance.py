"""Names and orders mean nothing, and saying a thing twice says it once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.tables.fuse import AttributeOptions, Claims, Coded, Result, infer

KINDS = ("categorical", "number", "measure", "set", "author set")
Row = tuple[int, int, int, str, float]

rows_of_claims = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 1),
        st.integers(0, 4),
        st.sampled_from(["1", "2", "3.5", "40", "41"]),
        st.sampled_from([0.0, 1.0, 2.0, float("nan")]),
    ),
    min_size=1,
    max_size=40,
)


def fused(rows: list[Row], kind: str, *, names: str = "{}", dated: bool = True) -> dict[tuple[int, int], list[object]]:
    """What comes out for every item, by the numbers that the names stand for."""
    objects, attributes, sources, values, times = zip(*rows, strict=True)
    claims = Claims.from_columns(
        [names.format(o) for o in objects],
        [names.format(a) for a in attributes],
        [names.format(s) for s in sources],
        values,
        time=times if dated else None,
    )
    options = {name: AttributeOptions(kind=kind) for name in claims.attribute_names}
    return _by_item(infer(claims, attributes=options), claims, {names.format(i): i for i in range(6)})


def _by_item(result: Result, claims: Claims, number: dict[str, int]) -> dict[tuple[int, int], list[object]]:
    found: dict[tuple[int, int], list[object]] = {}
    columns = ("object", "attribute", "value", "runner_up", "probability", "claims")
    for o, a, value, second, p, count in zip(*(result.truths[name] for name in columns), strict=True):
        item = number[claims.object_names[o]], number[claims.attribute_names[a]]
        found.setdefault(item, []).append((_rounded(value), _rounded(second), round(float(p), 6), int(count)))
    return {item: sorted(answers, key=repr) for item, answers in found.items()}


def _rounded(value: object) -> object:
    return round(value, 6) if isinstance(value, float) else value


@given(rows_of_claims, st.sampled_from(KINDS), st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_the_order_of_rows_changes_nothing(rows: list[Row], kind: str, random: object) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert fused(rows, kind) == fused(shuffled, kind)


@given(rows_of_claims, st.sampled_from(KINDS), st.permutations(range(6)))
@settings(max_examples=25)
def test_names_change_nothing(rows: list[Row], kind: str, order: list[int]) -> None:
    renamed = [(order[o], a, order[s], value, time) for o, a, s, value, time in rows]
    back = {order[o]: o for o in range(6)}
    found = {(back[o], a): answers for (o, a), answers in fused(renamed, kind, names="n{}").items()}
    assert found == fused(rows, kind)


@given(rows_of_claims, st.sampled_from(KINDS), st.data())
@settings(max_examples=25)
def test_a_duplicate_changes_nothing(rows: list[Row], kind: str, data: st.DataObject) -> None:
    repeated = [*rows, *data.draw(st.lists(st.sampled_from(rows), max_size=8))]
    assert fused(rows, kind) == fused(repeated, kind)


@given(rows_of_claims, st.sampled_from((*KINDS, "auto")))
@settings(max_examples=25)
def test_coded_values_mean_what_their_names_mean(rows: list[Row], kind: str) -> None:
    objects, attributes, sources, values, times = zip(*rows, strict=True)
    plain = Claims.from_columns(objects, attributes, sources, [None if v == "2" else v for v in values], time=times)
    names = np.array(["unused", "41", None, "40", "3.5", "3", "1"], dtype=object)
    coded = replace(plain, value=Coded(np.array([names.tolist().index(v) for v in plain.value]), names))
    assert list(coded.value) == plain.value.tolist() and coded.value[0] == plain.value[0]
    if set(values) == {"2"}:
        return
    options = {name: AttributeOptions(kind=kind) for name in plain.attribute_names}
    first, second = (infer(claims, attributes=options) for claims in (plain, coded))
    for name, column in (first.truths | first.why).items():
        np.testing.assert_array_equal((second.truths | second.why)[name], column)


def test_answers_of_a_larger_world_do_not_depend_on_names() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 9, 150)
    rows = [
        (int(o), 0, int(s), str(truth[o] if random.random() < 0.5 + 0.1 * s else random.integers(9)), float("nan"))
        for o in range(150)
        for s in range(5)
        if random.random() < 0.7
    ]
    order = random.permutation(150)
    objects = {int(order[o]): o for o in range(150)}

    def answers(rows: list[Row]) -> dict[int, tuple[object, float]]:
        columns = list(zip(*rows, strict=True))
        claims = Claims.from_columns(*columns[:4])
        truths = infer(claims, attributes={"0": AttributeOptions(kind="categorical")}).truths
        told = zip(truths["object"], truths["value"], truths["probability"], strict=True)
        return {int(claims.object_names[o]): (value, round(float(p), 9)) for o, value, p in told}

    renamed = answers([(int(order[o]), a, 4 - s, value, time) for o, a, s, value, time in rows])
    assert {objects[o]: answer for o, answer in renamed.items()} == answers(rows)
