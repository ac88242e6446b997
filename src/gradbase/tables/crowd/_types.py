"""What goes into the models of crowdsourced truth and what comes out: arrays in integer codes, with names beside."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradbase.common.errors import UsageError

if TYPE_CHECKING:
    from gradbase.tables.crowd._classifier import Classifier
    from gradbase.tables.crowd._state import State

Kind = Literal["classes", "numbers", "sets"]
Ints = NDArray[np.int64]
Codes = NDArray[np.int32] | NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[str, int, int], None]
NONE = -1  # the code of no item, worker or class


@dataclass(frozen=True)
class Claims:
    """Who said what about which item: one row per claim.

    `item` and `worker` are int64[n] (of classes also int32, half the memory) codes into the names `items` and
    `workers`; names nobody mentions are allowed (items without any label get the prior, or what the classifier says).
    `label` is, by `kind`:

    - "classes": int64[n] or int32[n], codes into `classes`;
    - "numbers": float64[n], finite; `classes` is empty;
    - "sets": int64[n], 0 (no) or 1 (yes) for the tag `tag` int64[n], a code into `classes`.

    The same row twice counts once. A worker who answers twice for one item, differently, has one vote there, shared
    evenly by the answers (for numbers: the mean).
    """

    item: Codes
    worker: Codes
    label: NDArray[Any]
    items: NDArray[Any]
    workers: NDArray[Any]
    classes: NDArray[Any]
    kind: Kind = "classes"
    tag: Ints | None = None

    def __post_init__(self) -> None:
        _check_lengths(self)
        _check_codes("item", self.item, len(self.items))
        _check_codes("worker", self.worker, len(self.workers))
        if self.kind == "classes":
            _check_codes("label", self.label, len(self.classes))
        elif self.kind == "numbers":
            _check_finite(self.label)
        else:
            assert self.tag is not None, "claims of kind 'sets' have tags"
            _check_codes("tag", self.tag, len(self.classes))
            _check_codes("label", self.label, 2)

    def __len__(self) -> int:
        return len(self.item)

    @classmethod
    def from_columns(
        cls,
        item: ArrayLike,
        worker: ArrayLike,
        label: ArrayLike,
        *,
        kind: Kind = "classes",
        tag: ArrayLike | None = None,
        items: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Claims:
        """Claims from columns of names (anything numpy can sort): codes follow the names' order.

        `items` and `classes` add names beyond those that occur. Raises UsageError for columns of different
        lengths and for numbers that are not finite.
        """
        item_names, item_codes = _coded(item, items)
        worker_names, worker_codes = _coded(worker, None)
        if kind == "numbers":
            values = np.asarray(label, dtype=np.float64)
            return cls(item_codes, worker_codes, values, item_names, worker_names, np.empty(0, dtype=object), kind)
        if kind == "sets":
            if tag is None:
                raise UsageError("claims of kind 'sets' need a column of tags", "one row says yes or no to one tag")
            tag_names, tag_codes = _coded(tag, classes)
            yes = np.asarray(label).astype(np.int64)
            return cls(item_codes, worker_codes, yes, item_names, worker_names, tag_names, kind, tag_codes)
        class_names, labels = _coded(label, classes)
        return cls(item_codes, worker_codes, labels, item_names, worker_names, class_names, kind)

    @classmethod
    def from_sets(
        cls,
        item: ArrayLike,
        worker: ArrayLike,
        chosen: Sequence[Iterable[Any]],
        *,
        items: ArrayLike | None = None,
        classes: ArrayLike | None = None,
    ) -> Claims:
        """Yes/no claims from the set of tags that a worker chose for an item: tags left out are a "no".

        `chosen[i]` are the tags of row i; the tags are all that anybody chose, and `classes`.
        """
        sets = [set(tags) for tags in chosen]
        said = sorted(set().union(*sets))
        names, _ = _coded(np.array(said), classes)
        rows, tags = np.divmod(np.arange(len(sets) * len(names), dtype=np.int64), max(len(names), 1))
        yes = np.array([name in chosen_tags for chosen_tags in sets for name in names.tolist()], dtype=np.int64)
        item_column, worker_column = np.asarray(item)[rows], np.asarray(worker)[rows]
        all_items = np.asarray(item) if items is None else np.concatenate([np.asarray(item), np.asarray(items)])
        item_names, item_codes = _coded(item_column, all_items)
        worker_names, worker_codes = _coded(worker_column, None)
        return cls(item_codes, worker_codes, yes, item_names, worker_names, names, "sets", tags)


@dataclass(frozen=True)
class Features:
    """What is known of items besides labels: one row per item of the claims, in the order of `Claims.items`.

    `numeric` float[n_items, d] (NaN is "not known"), `text` maps a column's name to n_items strings, `embedding`
    float[n_items, e]. Columns of text named in pairs (`name_a`, `name_b`; `l_x`, `r_x`) are also compared with each
    other. Identifiers are no features.
    """

    numeric: NDArray[Any] | None = None
    text: Mapping[str, Sequence[str]] = field(default_factory=dict)
    embedding: NDArray[Any] | None = None

    def __len__(self) -> int:
        for column in (self.numeric, self.embedding, *self.text.values()):
            if column is not None:
                return len(column)
        return 0


@dataclass(frozen=True)
class Config:
    """One default for everything. Only `seed`, `memory` and where things are kept are meant to be set.

    `memory` is the budget of the neural prior's training step as `gradbase.compile` takes it ("200MB", "40%",
    None for no limit), `catalog` the file of its statistics, `folds` of the cross-fitting, `rounds` of inference
    and training in turn, `steps` of training per fold and round (a linear classifier goes on with a third of
    them). `on_progress(stage, done, total)` is called.
    """

    seed: int = 0
    memory: str | int | float | None = None
    catalog: str | os.PathLike[str] | None = None
    folds: int = 5
    rounds: int = 16
    steps: int = 300
    on_progress: Progress | None = None


@dataclass(frozen=True)
class Workers:
    """Quality of the workers, one row per name in `Claims.workers`.

    `quality` in 0..1: the chance that the worker's label is the truth (for numbers: 1 / (1 + error variance over
    the truth's variance)), `low` and `high` its 90% interval, `claims` int64 how many. `confusion`
    float64[n_workers, K, K] (classes; sets: K = 2, no and yes) is p(label | truth) with truth in rows; None where it
    would be large (`confusion_of(worker)` has it for one worker). `bias` and `deviation` (numbers): what the worker
    adds to the truth and the spread of the rest.
    """

    quality: Floats
    low: Floats
    high: Floats
    claims: Ints
    confusion: Floats | None = None
    bias: Floats | None = None
    deviation: Floats | None = None


@dataclass(frozen=True)
class Copies:
    """Who repeats whose errors: one row per pair, the strongest evidence first.

    `copier`, `original` int64[n] codes of workers, `probability` that a label is copied, `evidence` log-odds of copying
    against two workers on their own, `shared` int64[n] how often the original was outvoted where both answered, `same`
    in how many of these the copier said the same. A pair is named in the direction that has more evidence, which tells
    little where both err alike; in both directions where both have as much, as with workers who always say the same.
    """

    copier: Ints
    original: Ints
    probability: Floats
    evidence: Floats
    shared: Ints
    same: Ints

    def __len__(self) -> int:
        return len(self.copier)

    @classmethod
    def none(cls) -> Copies:
        no_codes, no_numbers = np.empty(0, dtype=np.int64), np.empty(0)
        return cls(no_codes, no_codes, no_numbers, no_numbers, no_codes, no_codes)

    def rows(self, chosen: Any) -> Copies:
        """The chosen rows, in the order that is given."""
        return Copies(*(getattr(self, column.name)[chosen] for column in fields(self)))


@dataclass(frozen=True)
class Why:
    """Additive log-odds of an item's value against its runner-up: the rows of an item sum to its log-odds.

    `item` int64[m], `worker` int64[m] (-1: not a claim), `label` int64[m] (-1: not a claim; numbers: float64, NaN),
    `reason` is "claim", "prior" (how common the classes are) or "features" (the classifier), `log_odds` float64[m].
    For sets there is also `tag`, and the rows of an item and tag sum. For numbers `log_odds` is the weight of the
    claim in the value (they sum to one per item).
    """

    item: Ints
    worker: Ints
    label: NDArray[Any]
    reason: NDArray[Any]
    log_odds: Floats
    tag: Ints | None = None


@dataclass(frozen=True)
class Result:
    """What was inferred; arrays have one row per name in `claims.items`.

    - classes: `value` and `runner_up` int64 codes (-1: there is none), `posterior` float64[n_items, K];
    - numbers: `value` float64 (NaN for items nobody labelled and nothing predicts), `probability` that the truth
      lies in `interval` float64[n_items, 2], `runner_up` -1, `posterior` None;
    - sets: `value` bool[n_items, K], `posterior` and `probability` float64[n_items, K] of yes and of the value.

    `claim_count` int64[n_items] counts distinct claims. `classifier` predicts items nobody labelled, where
    features were given. `state` are the statistics to go on from, `copies` the workers who were found to copy (none
    among numbers, nor where classes are too many for confusion matrices).
    """

    claims: Claims
    value: NDArray[Any]
    probability: Floats
    runner_up: NDArray[Any]
    runner_up_probability: Floats
    claim_count: Ints
    posterior: Floats | None
    workers: Workers
    explain: Callable[[], Why]
    state: State
    interval: Floats | None = None
    classifier: Classifier | None = None
    copies: Copies = field(default_factory=Copies.none)

    def why(self) -> Why:
        """One row per claim and prior; made when asked for."""
        return self.explain()


@dataclass(frozen=True)
class Purchases:
    """Labels worth buying, best first: `item` int64[k] codes (an item may come again), `gain` float64[k], the
    expected number of answers put right."""

    item: Ints
    gain: Floats


def _coded(column: ArrayLike, more: ArrayLike | None) -> tuple[NDArray[Any], Ints]:
    """Sorted unique names and the codes of `column`; `more` are names that need not occur in it."""
    values = np.asarray(column)
    everything = values if more is None else np.concatenate([values, np.asarray(more)])
    names, codes = np.unique(everything, return_inverse=True)
    return names, codes[: len(values)].astype(np.int64)


def _check_lengths(claims: Claims) -> None:
    columns = {"item": claims.item, "worker": claims.worker, "label": claims.label}
    if claims.tag is not None:
        columns["tag"] = claims.tag
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise UsageError(f"columns of claims differ in length: {found}", "expected one entry per claim in each")


def _check_codes(name: str, codes: NDArray[Any], size: int) -> None:
    if len(codes) and (codes.min() < 0 or codes.max() >= size):
        raise UsageError(
            f"{name} has codes from {codes.min()} to {codes.max()}, expected 0 to {size - 1}",
            "codes index the names that are given beside them",
        )


def _check_finite(values: NDArray[Any]) -> None:
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        raise UsageError(f"{bad} of {len(values)} numbers are NaN or infinite", "leave out claims that say nothing")
