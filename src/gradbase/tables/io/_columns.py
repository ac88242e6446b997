"""Which column is which: by name as given, else by convention."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradbase.common.errors import TableError


@dataclass(frozen=True)
class Role:
    """What a column is for: `name` is how options and outputs call it, `aliases` how inputs may."""

    name: str
    aliases: tuple[str, ...] = ()
    required: bool = True


ITEM = Role("item", ("task", "question", "example", "unit", "instance", "document", "image", "sentence"))
WORKER = Role("worker", ("performer", "annotator", "rater", "labeler", "labeller", "coder", "judge", "user", "turker"))
LABEL = Role("label", ("value", "answer", "response", "class", "category", "annotation", "judgment", "judgement",
                       "rating", "score", "tag", "estimate", "measurement"))
ANSWER = Role("answer", ("yes", "vote", "present", "applies"), required=False)
OBJECT = Role("object", ("entity", "item", "key", "subject"))
ATTRIBUTE = Role("attribute", ("property", "predicate", "field", "column"), required=False)
SOURCE = Role("source", ("provider", "website", "site", "origin", "worker", "editor"))
VALUE = Role("value", ("claim", "answer", "label"))
TIME = Role("time", ("ts", "timestamp", "date", "claimed_at", "updated_at"), required=False)
CONFIDENCE = Role("confidence", ("certainty",), required=False)


def resolve(
    found: Sequence[str], roles: Sequence[Role], given: Mapping[str, str] | None, where: str
) -> dict[str, str]:
    """Role to column of `found`; optional roles without one are left out.

    `given` (role to column) goes first; then a column called like the role, then one called like an alias, without
    regard to case and to an ending of `id`. Raises TableError for a column that is missing, or that could be two.
    """
    chosen = _given(found, roles, given or {}, where)
    names = {column: _plain(column) for column in found}
    for wanted in (True, False):  # what must be there chooses first
        for role in roles:
            if role.name not in chosen and role.required is wanted:
                _choose(role, names, chosen, where)
    return {role.name: chosen[role.name] for role in roles if role.name in chosen}


def _given(found: Sequence[str], roles: Sequence[Role], given: Mapping[str, str], where: str) -> dict[str, str]:
    known = [role.name for role in roles]
    for role, column in given.items():
        if role not in known:
            raise TableError(f"{role!r} is not a column that is asked for here{_meant(role, known)}", _list(known))
        if column not in found:
            raise TableError(f"{where} has no column {column!r}{_meant(column, found)}", f"found {_list(found)}")
    return dict(given)


def _choose(role: Role, names: Mapping[str, str], chosen: dict[str, str], where: str) -> None:
    taken = set(chosen.values())
    free = {column: name for column, name in names.items() if column not in taken}
    called = [column for column, name in free.items() if _among(name, (role.name,))]
    fitting = called or [column for column, name in free.items() if _among(name, role.aliases)]
    if len(fitting) > 1:
        raise TableError(
            f"{where} has several columns for {role.name}: {_list(fitting)}", f"choose with columns {role.name}=NAME"
        )
    if fitting:
        chosen[role.name] = fitting[0]
    elif role.required:
        raise _missing(role, list(names), where)


def _among(name: str, words: Sequence[str]) -> bool:
    return name in words or name.removesuffix("id") in words  # userid


def _missing(role: Role, found: Sequence[str], where: str) -> TableError:
    near = [column for column in found if _plain(column) not in _BARE]
    words = (role.name, *role.aliases)
    close = [c for c in near if difflib.get_close_matches(_plain(c), words, n=1, cutoff=0.7)]
    meant = f", did you mean {close[0]!r}?" if close else ""
    return TableError(
        f"{where} has no column for {role.name}{meant}",
        f"found {_list(found)}",
        f"expected {role.name} (or {', '.join(role.aliases[:4])}, ...), or name it with columns {role.name}=NAME",
    )


_BARE = {"id", ""}


def _plain(column: str) -> str:
    """Worker-ID, workerId and worker_id are all `worker`."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.strip()).lower()
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"[\s_-]+(id|name)$", "", words)).strip("_")


def _meant(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _list(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:12]))
    return f"{shown} and {len(names) - 12} more" if len(names) > 12 else shown or "none"
