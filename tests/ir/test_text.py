"""The text form: what it looks like, that parsing undoes printing, and what it says about text it cannot read."""

from __future__ import annotations

import typing
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradbase.ir import PlanSyntaxError, format_logical, format_physical, parse_logical, parse_physical
from gradbase.ir.logical import LogicalPlan, Operator, Phase, Storage, StorageKind, Tensor
from gradbase.ir.physical import Action, Await, Compute, Decision, Life, Origin, PageIn, PageOut, PhysicalPlan
from tests.ir.plans import chain, six_operators, six_physical


def test_logical_text_reads_like_this() -> None:
    text = format_logical(six_operators()).splitlines()
    assert text[:5] == [
        "logical plan",
        "device cpu",
        "results %4",
        r'note "a \"note\"\nof two lines"',
        "%0 parameter 400 fc1.weight",
    ]
    assert text[13] == (
        "@1 forward drop aten.native_dropout.default reads=%2 writes=%3 inplace=%3<-%2 module=drop"
        ' source=model.py:11 signature="native_dropout(float32[10,10], p=0.1)" random'
    )
    assert "inputs=%1:float32[10,10],%0:float32[10,10] outputs=%2:float32[10,10]" in text[12]
    assert text[17].endswith("mutates=%0,%7 module=fc1 once")


def test_physical_text_reads_like_this() -> None:
    text = format_physical(six_physical()).splitlines()
    assert text[:2] == ["physical plan", "budget_bytes 4500"]
    assert "$1 %3 compute offset=0 nbytes=1024 alive=1..4 reuses=$0" in text
    assert "4: await-out $1" in text
    assert "9: run @0 again=1 writes=$6" in text
    assert 'decision %7 page after=start before=@5 cost_us=0.0 why="used once a step"' in text
    commented = format_physical(six_physical(), six_operators())
    assert "4: await-out $1  # drop\n" in commented
    assert '12: run @5 reads=$7,$5  # "update fc1.weight"\n' in commented
    assert parse_physical(commented) == six_physical()


def test_hand_plans_round_trip() -> None:
    for logical, physical in ((six_operators(), six_physical()), chain(5)):
        assert parse_logical(format_logical(logical)) == logical
        assert parse_physical(format_physical(physical)) == physical
    unlimited = replace(six_physical(), budget_bytes=None)
    assert parse_physical(format_physical(unlimited)) == unlimited


_id = st.integers(0, 99)
_ids = st.lists(_id, max_size=3).map(tuple)
_bytes = st.integers(0, 2**45)
_time_us = st.floats(allow_nan=False)
_text = st.text(max_size=8) | st.sampled_from(["h.0.attn", "a b", "#", '"', "", "%1", "=", "a=b", "\\", "x,y", "\n"])


def _literal(literal: object) -> st.SearchStrategy[typing.Any]:
    return st.sampled_from(typing.get_args(literal))


@st.composite
def _tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 9), max_size=3).map(tuple))
    strides = tuple(draw(st.lists(st.integers(0, 99), min_size=len(shape), max_size=len(shape))))
    return Tensor(draw(_id), draw(st.sampled_from(["float32", "bool", "float8_e4m3fn"])), shape, strides, draw(_bytes))


@st.composite
def _logical_plans(draw: st.DrawFn) -> LogicalPlan:
    storages = tuple(
        Storage(index, draw(_bytes), draw(_literal(StorageKind)), draw(_text))
        for index in range(draw(st.integers(0, 3)))
    )
    windows = st.lists(_tensors(), max_size=2).map(tuple)
    operators = tuple(
        Operator(
            index, draw(_text), draw(_text), draw(_ids), draw(_ids), draw(_ids), draw(windows), draw(windows),
            draw(_text), draw(_text), draw(_literal(Phase)), draw(st.booleans()), draw(st.booleans()),
            draw(st.lists(st.tuples(_id, _id), max_size=2).map(tuple)), draw(_text), draw(_bytes), draw(_bytes),
        )
        for index in range(draw(st.integers(0, 3)))
    )  # fmt: skip
    return LogicalPlan(storages, operators, draw(_ids), draw(_text), draw(st.lists(_text, max_size=2).map(tuple)))


_instructions = (
    st.builds(Compute, _id, _id, _ids, _ids)
    | st.builds(PageOut, _id)
    | st.builds(PageIn, _id)
    | st.builds(Await, _id, st.sampled_from(["in", "out"]))
)
_place = st.integers(-1, 99)
_decisions = st.builds(Decision, _id, _place, _place, _literal(Action), _time_us, _text)


@st.composite
def _physical_plans(draw: st.DrawFn) -> PhysicalPlan:
    lives = tuple(
        Life(index, draw(_id), draw(_bytes), draw(_bytes), draw(_id), draw(_id), draw(_literal(Origin)), draw(_place))
        for index in range(draw(st.integers(0, 3)))
    )
    return PhysicalPlan(
        draw(st.lists(_instructions, max_size=4).map(tuple)), lives, draw(st.lists(_decisions, max_size=2).map(tuple)),
        draw(_bytes), draw(_bytes), draw(_bytes), draw(_ids), draw(_bytes), draw(st.none() | _bytes), draw(_time_us),
        draw(_time_us), draw(_time_us), draw(_time_us), draw(st.lists(_text, max_size=3).map(tuple)),
        draw(st.lists(st.tuples(_text, _id), max_size=2).map(tuple)),
    )  # fmt: skip


@settings(deadline=None)
@given(_logical_plans())
def test_every_logical_plan_round_trips(plan: LogicalPlan) -> None:
    assert parse_logical(format_logical(plan)) == plan


@settings(deadline=None)
@given(_physical_plans())
def test_every_physical_plan_round_trips(plan: PhysicalPlan) -> None:
    assert parse_physical(format_physical(plan)) == plan


LOGICAL_ERRORS = [
    ("", 1, "starts with the line 'logical plan'"),
    ("\nphysical plan\n", 2, "starts with the line 'logical plan'"),
    ("logical plan\nwhat 3\n", 2, "'what' starts no line"),
    ("logical plan\n# fine\n%1 batch 4 x\n", 3, "%1 stands where %0 is due"),
    ("logical plan\n%0 tensor 4 x\n", 2, "'tensor' is not a kind of storage"),
    ("logical plan\n%0 batch four x\n", 2, "'four' is not a number of bytes"),
    ("logical plan\n%0 batch 4\n", 2, "ends where a name is expected"),
    ("logical plan\n%0 batch 4 x y\n", 2, "'y' is not expected here"),
    ('logical plan\n%0 batch 4 "x\n', 2, "cannot read '\"x'"),
    ('logical plan\n%0 batch 4 "\\x"\n', 2, "not a string in JSON's notation"),
    ("logical plan\n@0 forward a b reads=3\n", 2, "'3' is not an id such as %3"),
    ("logical plan\n@0 forward a b red=%3\n", 2, "unknown field 'red'"),
    ("logical plan\n@0 forward a b random random\n", 2, "'random' is given twice"),
    ("logical plan\n@0 forward a b inputs=%0:float32\n", 2, "is not a tensor"),
    ("logical plan\n@0 forward a b inputs=%0:float32[4,,4]\n", 2, "is not a tensor"),
]

PHYSICAL_ERRORS = [
    ("physical plan\narena_bytes 3\n", 2, "ends without budget_bytes"),
    ("physical plan\narena 3\n", 2, "'arena' starts no line"),
    ("physical plan\narena_bytes many\n", 2, "'many' is not a number of bytes"),
    ("physical plan\n1: page-in $0\n", 2, "instruction 1: stands where 0: is due"),
    ("physical plan\n0: page $0\n", 2, "'page' is no instruction"),
    ("physical plan\n\n0: run $0\n", 3, "'$0' is not an id such as @3"),
    ("physical plan\n$0 %1 compute offset=0 nbytes=4\n", 2, "field 'alive' is missing"),
    ("physical plan\n$0 %1 compute offset=0 nbytes=4 alive=3\n", 2, "'' is not a number"),
    ("physical plan\ndecision %1 drop after=@1\n", 2, "'drop' is not an action"),
]


@pytest.mark.parametrize(("text", "line", "problem"), LOGICAL_ERRORS)
def test_logical_errors_name_the_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(PlanSyntaxError) as caught:
        parse_logical(text)
    assert caught.value.line == line
    assert problem in str(caught.value)


@pytest.mark.parametrize(("text", "line", "problem"), PHYSICAL_ERRORS)
def test_physical_errors_name_the_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(PlanSyntaxError) as caught:
        parse_physical(text)
    assert caught.value.line == line
    assert problem in str(caught.value)
