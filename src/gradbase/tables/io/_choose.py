"""Which table of a database is meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from gradbase.common.errors import TableError


def the_table(where: str, found: Sequence[tuple[str, str]], given: str | None, default: str) -> tuple[str, str]:
    """(schema, name) of the table `given` ("name" or "schema.name"), or of the only one there is.

    Raises TableError that lists what there is.
    """
    if given is None:
        if len(found) == 1:
            return found[0]
        raise TableError(
            f"{where} has {len(found)} tables" if found else f"{where} has no tables",
            *([f"choose one with table NAME, or give a query: {_list(found, default)}"] if found else []),
        )
    fitting = [pair for pair in found if given in (pair[1], f"{pair[0]}.{pair[1]}")]
    in_default = [pair for pair in fitting if pair[0] == default]
    if not fitting or (len(fitting) > 1 and not in_default):
        close = difflib.get_close_matches(given, [name for _, name in found], n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise TableError(f"{where} has no table {given!r}{meant}", f"found {_list(found, default) or 'none'}")
    return (in_default or fitting)[0]


def _list(found: Sequence[tuple[str, str]], default: str) -> str:
    names = [name if schema == default else f"{schema}.{name}" for schema, name in found]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
