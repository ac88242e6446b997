"""What a user can get wrong, as exceptions.

    GradbaseError                  base: a code, what is wrong, what to do
    ├── UsageError                 a flag, an argument or a recipe is not as it must be
    ├── CaptureError               the step cannot be traced (data-dependent control flow, ...)
    ├── InfeasibleError            no plan fits the budget; carries the least bytes and the operator
    ├── CatalogError               the catalogue cannot be used
    ├── PageError                  the slow tier failed (disk full, not writable, ...)
    ├── StepError                  a planned step failed while it ran
    ├── TableError                 a table cannot be read, understood or written; told on one line
    └── StoreError                 the parameter store refuses, or its files or peers are not as they must be
        └── DamageError            a file of the store is not as it was written; carries path, offset and LSN

Every message has one shape: `[code] what is wrong`, then indented lines that say what was expected and
what to do. Our own mistakes are assertions, not exceptions.
"""

from __future__ import annotations


class GradbaseError(Exception):
    """An error a user can act on.

    `code` is a short stable name, `problem` one sentence, `remedies` what to do about it.
    """

    code = "error"

    def __init__(self, problem: str, *remedies: str) -> None:
        super().__init__(problem, *remedies)
        self.problem = problem
        self.remedies = remedies

    def __str__(self) -> str:
        return "\n  ".join((f"[{self.code}] {self.problem}", *self.remedies))


class UsageError(GradbaseError):
    code = "usage"


class CaptureError(GradbaseError):
    code = "capture"


class CatalogError(GradbaseError):
    code = "catalog"


class PageError(GradbaseError):
    code = "page"


class StepError(GradbaseError):
    code = "step"


class StoreError(GradbaseError):
    code = "store"


class DamageError(StoreError):
    """A file of the store is not as it was written: `path` from `offset` on; `lsn` is None outside logs."""

    code = "damaged"

    def __init__(self, problem: str, *remedies: str, path: str, offset: int, lsn: int | None = None) -> None:
        super().__init__(problem, *remedies)
        self.path = path
        self.offset = offset
        self.lsn = lsn


class TableError(GradbaseError):
    """A table cannot be read, understood or written. One line, because it is met in pipelines and their logs."""

    code = "table"

    def __str__(self) -> str:
        return f"[{self.code}] {'; '.join((self.problem, *self.remedies))}"


class InfeasibleError(GradbaseError):
    """No plan fits. `least_bytes` is the smallest budget a plan was found for, `operator` what needs it."""

    code = "budget-infeasible"

    def __init__(self, problem: str, *remedies: str, least_bytes: int, operator: str) -> None:
        super().__init__(problem, *remedies)
        self.least_bytes = least_bytes
        self.operator = operator
