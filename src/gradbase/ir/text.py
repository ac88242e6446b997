"""The text form of plans: people read it, tests compare it, a bug report carries it.

One line for each storage, operator, life, instruction and decision. `%3` is a storage, `@3` an operator,
`$3` a life; `#` starts a comment. Fields at their default are left out, and so are the strides of a
contiguous tensor. Strings stand bare when they are one plain word, else as in JSON. Printing and parsing
are exact inverses: `parse_logical(format_logical(plan)) == plan`.

    logical plan                                      physical plan
    device cpu                                        arena_bytes 3136
    results %4                                        spilled %7
    %0 parameter 400 fc1.weight                       $1 %3 compute offset=0 nbytes=1024 alive=1..4 reuses=$0
    @1 forward drop aten.native_dropout.default ...   1: run @1 reads=$0 writes=$1
       ... reads=%2 writes=%3 inplace=%3<-%2 random   2: page-out $1
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, cast, get_args

from gradbase.common.errors import UsageError
from gradbase.ir.logical import LogicalPlan, Operator, Phase, Storage, StorageKind, Tensor
from gradbase.ir.physical import (
    Action,
    Await,
    Compute,
    Decision,
    Instruction,
    Life,
    Origin,
    PageIn,
    PageOut,
    PhysicalPlan,
)

_T = TypeVar("_T")

_PLAIN = re.compile(r"[\w.:/<>()\[\]*+-]+", re.ASCII)
_WORD = re.compile(r'\s*((?:[^\s"#]|"(?:[^"\\]|\\.)*")+)')
_INTEGERS = r"((?:-?\d+(?:,-?\d+)*)?)"
_TENSOR = re.compile(rf"%(\d+):(\w+)\[{_INTEGERS}\](?:\({_INTEGERS}\))?(?:\+(-?\d+))?", re.ASCII)

_BYTE_FIELDS = ("arena_bytes", "resident_bytes", "scratch_bytes", "page_file_bytes")
_TIME_FIELDS = ("predicted_time_us", "unlimited_time_us", "lower_bound_time_us", "planning_s")


class PlanSyntaxError(UsageError):
    """The text of a plan cannot be read. `line` counts from 1."""

    code = "plan-syntax"

    def __init__(self, line: int, problem: str, *remedies: str) -> None:
        super().__init__(f"line {line}: {problem}", *remedies)
        self.line = line


# ---------------------------------------------------------------- printing


def format_logical(plan: LogicalPlan) -> str:
    """The plan as text, one line per storage and operator, with a newline at the end."""
    return "".join(f"{line}\n" for line in _logical_lines(plan))


def _logical_lines(plan: LogicalPlan) -> Iterator[str]:
    yield "logical plan"
    yield f"device {_text(plan.device)}"
    if plan.results:
        yield " ".join(["results", *(f"%{storage}" for storage in plan.results)])
    for note in plan.notes:
        yield f"note {_text(note)}"
    for storage in plan.storages:
        yield f"%{storage.id} {storage.kind} {storage.nbytes} {_text(storage.name)}"
    for operator in plan.operators:
        yield " ".join(_operator_words(operator))


def _operator_words(operator: Operator) -> Iterator[str]:
    yield f"@{operator.id} {operator.phase} {_text(operator.name)} {_text(operator.target)}"
    for key in ("reads", "writes", "mutates"):
        yield from _ids(key, "%", getattr(operator, key))
    if operator.inplace:
        yield "inplace=" + ",".join(f"%{written}<-%{read}" for written, read in operator.inplace)
    for key in ("inputs", "outputs"):
        if tensors := getattr(operator, key):
            yield f"{key}=" + ",".join(map(_tensor, tensors))
    for key in ("module", "source", "signature"):
        if text := getattr(operator, key):
            yield f"{key}={_text(text)}"
    for key in ("flops", "moved_bytes"):
        if number := getattr(operator, key):
            yield f"{key}={number}"
    if operator.random:
        yield "random"
    if not operator.recomputable:
        yield "once"


def format_physical(plan: PhysicalPlan, logical: LogicalPlan | None = None) -> str:
    """The plan as text; with `logical`, comments say which operator and storage each line is about."""
    return "".join(f"{line}\n" for line in _physical_lines(plan, logical))


def _physical_lines(plan: PhysicalPlan, logical: LogicalPlan | None) -> Iterator[str]:
    yield "physical plan"
    yield f"budget_bytes {'none' if plan.budget_bytes is None else plan.budget_bytes}"
    for key in _BYTE_FIELDS:
        yield f"{key} {getattr(plan, key)}"
    for key in _TIME_FIELDS:
        yield f"{key} {_number(getattr(plan, key))}"
    if plan.spilled:
        yield " ".join(["spilled", *(f"%{storage}" for storage in plan.spilled)])
    if plan.rules:
        yield " ".join(["rules", *map(_text, plan.rules)])
    for source, count in plan.estimates:
        yield f"estimate {_text(source)} {count}"
    for life in plan.lives:
        yield _life_line(life) + _comment(logical, storage=life.storage)
    for index, instruction in enumerate(plan.instructions):
        yield f"{index}: {_instruction_words(instruction)}{_about(plan, logical, instruction)}"
    for decision in plan.decisions:
        yield _decision_line(decision) + _comment(logical, storage=decision.storage)


def _about(plan: PhysicalPlan, logical: LogicalPlan | None, instruction: Instruction) -> str:
    if logical is None:
        return ""
    if isinstance(instruction, Compute):
        return _comment(logical, operator=instruction.operator)
    return _comment(logical, storage=plan.lives[instruction.life].storage)


def _comment(logical: LogicalPlan | None, *, operator: int = -1, storage: int = -1) -> str:
    if logical is None:
        return ""
    name = logical.storages[storage].name if operator == -1 else logical.operators[operator].name
    return f"  # {_text(name)}"


def _life_line(life: Life) -> str:
    line = f"${life.id} %{life.storage} {life.origin} offset={life.offset} nbytes={life.nbytes}"
    line += f" alive={life.born}..{life.dies}"
    return line if life.reuses == -1 else f"{line} reuses=${life.reuses}"


def _instruction_words(instruction: Instruction) -> str:
    if isinstance(instruction, Compute):
        again = [f"again={instruction.run}"] if instruction.run else []
        lives = [*_ids("reads", "$", instruction.reads), *_ids("writes", "$", instruction.writes)]
        return " ".join([f"run @{instruction.operator}", *again, *lives])
    if isinstance(instruction, PageOut):
        return f"page-out ${instruction.life}"
    if isinstance(instruction, PageIn):
        return f"page-in ${instruction.life}"
    return f"await-{instruction.direction} ${instruction.life}"


def _decision_line(decision: Decision) -> str:
    after = "start" if decision.after == -1 else f"@{decision.after}"
    before = "end" if decision.before == -1 else f"@{decision.before}"
    return (
        f"decision %{decision.storage} {decision.action} after={after} before={before}"
        f" cost_us={_number(decision.cost_us)} why={_text(decision.why)}"
    )


def _ids(key: str, sigil: str, ids: Iterable[int]) -> Iterator[str]:
    if joined := ",".join(f"{sigil}{identity}" for identity in ids):
        yield f"{key}={joined}"


def _tensor(tensor: Tensor) -> str:
    text = f"%{tensor.storage}:{tensor.dtype}[{','.join(map(str, tensor.shape))}]"
    if tensor.strides != _contiguous(tensor.shape):
        text += f"({','.join(map(str, tensor.strides))})"
    return f"{text}+{tensor.offset}" if tensor.offset else text


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    stride = 1
    for size in reversed(shape):
        strides.append(stride)
        stride *= max(size, 1)
    return tuple(reversed(strides))


def _text(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def _number(number: float) -> str:
    return repr(float(number))  # float() also takes numpy's scalars, whose repr is no number


# ---------------------------------------------------------------- parsing


class _Line:
    """The words of one line, taken from the front."""

    def __init__(self, number: int, text: str) -> None:
        self.number = number
        self.words = list(self._split(text))

    def _split(self, text: str) -> Iterator[str]:
        place = 0
        while match := _WORD.match(text, place):
            yield match.group(1)
            place = match.end()
        rest = text[place:].strip()
        if rest and not rest.startswith("#"):
            raise self.error(f"cannot read {rest!r}", "a string that is not one plain word stands in double quotes")

    def error(self, problem: str, *remedies: str) -> PlanSyntaxError:
        return PlanSyntaxError(self.number, problem, *remedies)

    def take(self, what: str) -> str:
        if not self.words:
            raise self.error(f"ends where {what} is expected")
        return self.words.pop(0)

    def text(self, what: str) -> str:
        return self.unquote(self.take(what))

    def unquote(self, word: str) -> str:
        if not word.startswith('"'):
            return word
        try:
            return cast(str, json.loads(word))
        except json.JSONDecodeError:
            raise self.error(f"{word} is not a string in JSON's notation") from None

    def number_of(self, kind: Callable[[str], _T], word: str, what: str) -> _T:
        try:
            return kind(word)
        except ValueError:
            raise self.error(f"{word!r} is not {what}") from None

    def integer(self, what: str) -> int:
        return self.number_of(int, self.take(what), what)

    def one_of(self, literal: Any, what: str) -> Any:
        """One of the words of a typing.Literal; the caller names its type."""
        word = self.take(what)
        if word not in get_args(literal):
            raise self.error(f"{word!r} is not {what}", f"expected one of {', '.join(get_args(literal))}")
        return word

    def identity(self, sigil: str, word: str) -> int:
        if not word.startswith(sigil):
            raise self.error(f"{word!r} is not an id such as {sigil}3")
        return self.number_of(int, word[1:], f"an id such as {sigil}3")

    def identities(self, sigil: str, joined: str) -> tuple[int, ...]:
        return tuple(self.identity(sigil, word) for word in joined.split(",")) if joined else ()

    def options(self, *known: str) -> dict[str, str]:
        """The rest of the line as key=value, and flags as a key with an empty value."""
        found: dict[str, str] = {}
        while self.words:
            key, _, value = self.words.pop(0).partition("=")
            if key not in known:
                raise self.error(f"unknown field {key!r}", f"expected one of {', '.join(known)}")
            if key in found:
                raise self.error(f"field {key!r} is given twice")
            found[key] = value
        return found

    def required(self, options: dict[str, str], key: str) -> str:
        if key not in options:
            raise self.error(f"field {key!r} is missing")
        return options[key]

    def done(self) -> None:
        if self.words:
            raise self.error(f"{self.words[0]!r} is not expected here")


def _lines(text: str, title: str) -> Iterator[_Line]:
    """The lines of a plan that hold words, after its title."""
    lines = (_Line(number, line) for number, line in enumerate(text.split("\n"), start=1))
    filled = (line for line in lines if line.words)
    first = next(filled, None)
    if first is None or " ".join(first.words) != title:
        raise PlanSyntaxError(first.number if first else 1, f"a {title} starts with the line {title!r}")
    return filled


def _next_id(line: _Line, word: str, sigil: str, have: list[Any]) -> int:
    identity = line.identity(sigil, word)
    if identity != len(have):
        raise line.error(f"{word} stands where {sigil}{len(have)} is due")
    return identity


def parse_logical(text: str) -> LogicalPlan:
    """Read what `format_logical` wrote. Raises PlanSyntaxError with the line that cannot be read.

    Only the notation is checked here; `verify_logical` checks what it means.
    """
    storages: list[Storage] = []
    operators: list[Operator] = []
    header: dict[str, Any] = {"device": "cpu", "results": ()}
    notes: list[str] = []
    for line in _lines(text, "logical plan"):
        word = line.take("a line")
        if word.startswith("%"):
            storages.append(_parse_storage(line, _next_id(line, word, "%", storages)))
        elif word.startswith("@"):
            operators.append(_parse_operator(line, _next_id(line, word, "@", operators)))
        elif word == "device":
            header["device"] = line.text("a device")
        elif word == "results":
            header["results"] = _rest_of_ids(line)
        elif word == "note":
            notes.append(line.text("a note"))
        else:
            raise line.error(f"{word!r} starts no line", "expected device, results, note, %0 or @0")
        line.done()
    return LogicalPlan(tuple(storages), tuple(operators), notes=tuple(notes), **header)


def _rest_of_ids(line: _Line) -> tuple[int, ...]:
    words, line.words = line.words, []
    return tuple(line.identity("%", word) for word in words)


def _parse_storage(line: _Line, identity: int) -> Storage:
    kind = line.one_of(StorageKind, "a kind of storage")
    return Storage(identity, line.integer("a number of bytes"), kind, line.text("a name"))


def _parse_operator(line: _Line, identity: int) -> Operator:
    phase = line.one_of(Phase, "a phase")
    name, target = line.text("a name"), line.text("a target")
    found = line.options(
        "reads", "writes", "mutates", "inplace", "inputs", "outputs", "module", "source", "signature", "flops",
        "moved_bytes", "random", "once",
    )  # fmt: skip
    values: dict[str, Any] = {"random": "random" in found, "recomputable": "once" not in found}
    for key in ("reads", "writes", "mutates"):
        values[key] = line.identities("%", found.get(key, ""))
    for key in ("inputs", "outputs"):
        values[key] = tuple(_parse_tensors(line, found.get(key, "")))
    for key in ("module", "source", "signature"):
        values[key] = line.unquote(found.get(key, ""))
    for key in ("flops", "moved_bytes"):
        values[key] = line.number_of(int, found.get(key, "0"), "a number")
    values["inplace"] = tuple(_parse_pairs(line, found.get("inplace", "")))
    return Operator(identity, name, target, phase=phase, **values)


def _parse_pairs(line: _Line, joined: str) -> Iterator[tuple[int, int]]:
    for pair in joined.split(",") if joined else ():
        written, _, read = pair.partition("<-")
        yield line.identity("%", written), line.identity("%", read)


def _parse_tensors(line: _Line, joined: str) -> Iterator[Tensor]:
    for word in re.split(r",(?=%)", joined) if joined else ():
        match = _TENSOR.fullmatch(word)
        if match is None:
            raise line.error(f"{word!r} is not a tensor such as %0:float32[8,4](4,1)+0")
        storage, dtype, sizes, steps, offset = match.groups()
        shape = _numbers(sizes)
        strides = _contiguous(shape) if steps is None else _numbers(steps)
        yield Tensor(int(storage), dtype, shape, strides, int(offset or 0))


def _numbers(joined: str) -> tuple[int, ...]:
    return tuple(map(int, joined.split(","))) if joined else ()


def parse_physical(text: str) -> PhysicalPlan:
    """Read what `format_physical` wrote. Raises PlanSyntaxError with the line that cannot be read.

    Only the notation is checked here; `verify_physical` checks what it means.
    """
    lives: list[Life] = []
    instructions: list[Instruction] = []
    decisions: list[Decision] = []
    header: dict[str, Any] = {"spilled": (), "rules": ()}
    estimates: list[tuple[str, int]] = []
    number = 1
    for line in _lines(text, "physical plan"):
        number, word = line.number, line.take("a line")
        if word.startswith("$"):
            lives.append(_parse_life(line, _next_id(line, word, "$", lives)))
        elif word.endswith(":"):
            instructions.append(_parse_instruction(line, word, len(instructions)))
        elif word == "decision":
            decisions.append(_parse_decision(line))
        elif word == "estimate":
            estimates.append((line.text("a source"), line.integer("a count")))
        else:
            header[word] = _parse_header(line, word)
        line.done()
    _require_header(header, number)
    return PhysicalPlan(tuple(instructions), tuple(lives), tuple(decisions), estimates=tuple(estimates), **header)


def _parse_header(line: _Line, key: str) -> Any:
    if key == "spilled":
        return _rest_of_ids(line)
    if key == "rules":
        words, line.words = line.words, []
        return tuple(map(line.unquote, words))
    if key == "budget_bytes" and line.words == ["none"]:
        line.words.clear()
        return None
    if key in ("budget_bytes", *_BYTE_FIELDS):
        return line.integer("a number of bytes")
    if key in _TIME_FIELDS:
        return line.number_of(float, line.take("a number"), "a number")
    raise line.error(f"{key!r} starts no line", "expected a header field, $0, 0: or decision")


def _require_header(header: dict[str, Any], number: int) -> None:
    for key in ("budget_bytes", *_BYTE_FIELDS, *_TIME_FIELDS):
        if key not in header:
            raise PlanSyntaxError(number, f"the plan ends without {key}")


def _parse_life(line: _Line, identity: int) -> Life:
    storage = line.identity("%", line.take("a storage"))
    origin: Origin = line.one_of(Origin, "an origin")
    found = line.options("offset", "nbytes", "alive", "reuses")
    born, _, dies = line.required(found, "alive").partition("..")
    offset, nbytes, first, last = (
        line.number_of(int, word, "a number")
        for word in (line.required(found, "offset"), line.required(found, "nbytes"), born, dies)
    )
    reuses = line.identity("$", found["reuses"]) if "reuses" in found else -1
    return Life(identity, storage, offset, nbytes, first, last, origin, reuses)


def _parse_instruction(line: _Line, label: str, due: int) -> Instruction:
    if label != f"{due}:":
        raise line.error(f"instruction {label} stands where {due}: is due")
    verb = line.take("an instruction")
    if verb == "run":
        operator = line.identity("@", line.take("an operator"))
        found = line.options("again", "reads", "writes")
        run = line.number_of(int, found.get("again", "0"), "a number")
        reads, writes = (line.identities("$", found.get(key, "")) for key in ("reads", "writes"))
        return Compute(operator, run, reads, writes)
    life = line.identity("$", line.take("a life"))
    if verb == "page-out":
        return PageOut(life)
    if verb == "page-in":
        return PageIn(life)
    if verb in ("await-in", "await-out"):
        return Await(life, "in" if verb == "await-in" else "out")
    raise line.error(f"{verb!r} is no instruction", "expected run, page-out, page-in, await-in or await-out")


def _parse_decision(line: _Line) -> Decision:
    storage = line.identity("%", line.take("a storage"))
    action: Action = line.one_of(Action, "an action")
    found = line.options("after", "before", "cost_us", "why")
    after, before = line.required(found, "after"), line.required(found, "before")
    return Decision(
        storage,
        -1 if after == "start" else line.identity("@", after),
        -1 if before == "end" else line.identity("@", before),
        action,
        line.number_of(float, line.required(found, "cost_us"), "a number"),
        line.unquote(line.required(found, "why")),
    )
