"""How far the constants of fusion carry its answers: each by half and by twice, on every set.

    python -m benchmarks.tables.fuse_sensitivity --data DIR [--sets NAME,...] [--only NAME,...] [--thinned N]

The constants are set in the modules of `gradbase.tables.fuse` for a run and put back after it; everything else is as in
`benchmarks.tables.fuse`, whose DIR, measure of accuracy and sets these are. A share near one (of agreement) is moved by
its distance to one, a probability vector by the odds of its first entry. After the constants come other seeds (other
folds for what is held out), then what leaving a set out would have chosen: for every set the value of each constant
that is best on the mean of the others, and what that costs on the set itself.

--thinned N instead makes other sets of the same forms, N of each of three kinds: half of the objects, 70% of the
sources, 70% of the claims, drawn by seed; beside fusion run the peers on the very same claims.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tables.fuse import (
    fused,
    fused_numbers,
    mean_absolute_error,
    read,
    read_gold,
    read_hierarchy,
    read_numeric,
    score,
    score_peers,
)
from gradbase.tables.fuse import Claims, Config

FACTORS = (0.5, 2.0)
Row = dict[str, Any]


@dataclass(frozen=True)
class Constant:
    """Where a constant lives and how it is moved by a factor."""

    module: str
    name: str
    moved: Callable[[Any, float], Any]


def scaled(value: Any, factor: float) -> Any:
    return type(value)(max(1, round(value * factor))) if isinstance(value, int) else value * factor


def from_one(value: float, factor: float) -> float:
    return 1 - (1 - value) * factor


def first_odds(value: Any, factor: float) -> Any:
    """A probability vector whose first entry has other odds, the rest in proportion."""
    odds = value[0] / (1 - value[0]) * factor
    first = odds / (1 + odds)
    return np.r_[first, value[1:] * (1 - first) / (1 - value[0])]


def nearer(kinds: dict[str, Any], factor: float) -> dict[str, Any]:
    """The registered kinds with their thresholds of similarity moved."""
    return {name: replace(kind, near=max(0.0, from_one(kind.near, factor))) for name, kind in kinds.items()}


CONSTANTS = (
    Constant("_discrete", "DOMAIN", scaled),
    Constant("_discrete", "UNCLAIMED", scaled),
    Constant("_discrete", "STRENGTH", scaled),
    Constant("_discrete", "LIFT_STRENGTH", scaled),
    Constant("_discrete", "BASE", first_odds),
    Constant("_choose", "_COPY_ROUNDS", scaled),
    Constant("_choose", "_PAIR_COST", scaled),
    Constant("_choose", "_PARTIAL_COST", scaled),
    Constant("_copying", "CLAIMERS_MAX", scaled),
    Constant("_copying", "SAME_MIN", scaled),
    Constant("_copying", "_EVIDENCE_MIN", scaled),
    Constant("_copying", "_TWIN_RATE", from_one),
    Constant("_copying", "_TWIN_SAME", scaled),
    Constant("_gates", "FOLDS", scaled),
    Constant("_gates", "HELD_SHARE", scaled),
    Constant("_gates", "ERRORS_MIN", scaled),
    Constant("_gates", "SHARED_CLAIMS", scaled),
    Constant("_kinds", "_KINDS", nearer),
    Constant("_relations", "COMPARED_MAX", scaled),
    Constant("_detect", "_MOSTLY", from_one),
    Constant("_detect", "_LISTS", scaled),
    Constant("_detect", "_SEVERAL", scaled),
    Constant("_detect", "_EXACT_AGREEMENT", scaled),
    Constant("_detect", "_POPULAR", scaled),
    Constant("_measured", "_GROSS", scaled),
    Constant("_measured", "_SPREAD_CLAIMS", scaled),
    Constant("_measured", "_TAIL", scaled),
    Constant("_measured", "_CLEARLY", scaled),
    Constant("_measured", "_HELD_SHARE", scaled),
)


@contextmanager
def moved(constant: Constant, factor: float) -> Iterator[None]:
    """The constant times the factor, for as long as this lasts."""
    module = importlib.import_module(f"gradbase.tables.fuse.{constant.module}")
    value = getattr(module, constant.name)
    setattr(module, constant.name, constant.moved(value, factor))
    try:
        yield
    finally:
        setattr(module, constant.name, value)


Measure = Callable[[Config], float]


def told(folder: Path) -> Measure:
    """Accuracy on a set of claims by configuration."""
    table, gold, hierarchy = read(folder / "claims.csv"), read_gold(folder / "gold.csv"), read_hierarchy(folder)
    claims = Claims.from_columns(table["object"], table["attribute"], table["source"], table["value"])
    return lambda config: float(score(claims, fused(claims, config, hierarchy)[0], gold)["accuracy"])


def numeric(folder: Path) -> Measure:
    """Mean absolute error on a set of measured numbers by configuration, negative so that more is better."""
    table, gold = read_numeric(folder)
    return lambda config: -mean_absolute_error(fused_numbers(table, config)[0], gold)


def measured(sets: dict[str, Measure], only: list[str] | None, seeds: int) -> Iterator[Row]:
    """A row a variant: its name and what every set gives."""
    default = {name: run(Config()) for name, run in sets.items()}
    yield {"variant": "as it is", "constant": None, **default}
    for constant in CONSTANTS:
        for factor in FACTORS if only is None or constant.name in only else ():
            with moved(constant, factor):
                found = {name: run(Config()) for name, run in sets.items()}
            yield {"variant": f"{constant.name} x {factor:g}", "constant": constant.name, **found}
    for seed in range(1, seeds + 1):
        found = {name: run(Config(seed=seed)) for name, run in sets.items()}
        yield {"variant": f"seed {seed}", "constant": None, **found}


def left_out(rows: list[Row], sets: list[str]) -> Iterator[Row]:
    """For every set and constant: what the other sets would have chosen, and the set's loss by it. Gains of the others
    are compared in units of what each set is spread over all variants, for accuracies and errors are not one scale."""
    default, spread = rows[0], {name: float(np.std([row[name] for row in rows])) or 1.0 for name in sets}
    for name in sets:
        others = [s for s in sets if s != name]
        for constant in dict.fromkeys(row["constant"] for row in rows if row["constant"]):
            tried = [default, *(row for row in rows if row["constant"] == constant)]
            best = max(tried, key=lambda row: sum((row[s] - default[s]) / spread[s] for s in others))
            if best is not default:
                yield {"set": name, "variant": best["variant"], "change": best[name] - default[name]}


THINNED = {"objects": 0.5, "sources": 0.7, "claims": 0.7}


def thinned(table: dict[str, list[str]], by: str, seed: int) -> dict[str, list[str]]:
    """A table of claims without some objects, sources or claims."""
    names = list(range(len(table["value"]))) if by == "claims" else table[by.removesuffix("s")]
    distinct = sorted(set(names))
    kept = np.random.default_rng(seed).random(len(distinct)) < THINNED[by]
    alive = {name for name, keep in zip(distinct, kept.tolist(), strict=True) if keep}
    rows = [i for i, name in enumerate(names) if name in alive]
    return {column: [values[i] for i in rows] for column, values in table.items()}


def measured_thinned(folder: Path, count: int) -> Iterator[Row]:
    """A row a thinned set: accuracy of fusion and of the peers."""
    table, gold, hierarchy = read(folder / "claims.csv"), read_gold(folder / "gold.csv"), read_hierarchy(folder)
    for by in THINNED:
        for seed in range(count):
            part = thinned(table, by, seed)
            claims = Claims.from_columns(part["object"], part["attribute"], part["source"], part["value"])
            result, _ = fused(claims, Config(), hierarchy)
            own = score(claims, result, gold)
            peers = {row["system"]: row["accuracy"] for row in score_peers(part, result.kinds, gold)}
            yield {"set": folder.name, "thinned": by, "seed": seed, "items": own["items"], "gradbase": own["accuracy"],
                   "calibration_error": own["calibration_error"], **peers}  # fmt: skip


def print_thinned(rows: list[Row]) -> None:
    """Means over seeds, and how often and by how much the best peer of a set was ahead."""
    systems = [name for name in rows[0] if name not in ("set", "thinned", "seed", "items", "calibration_error")]
    print(f"{'set':<12}{'thinned':<10}" + "".join(f"{name:>18}" for name in systems) + f"{'worst':>8}")
    for key in dict.fromkeys((row["set"], row["thinned"]) for row in rows):
        own = [row for row in rows if (row["set"], row["thinned"]) == key]
        worst = min(row["gradbase"] - max(row[name] for name in systems if name != "gradbase") for row in own)
        means = "".join(f"{np.mean([row[name] for row in own]):18.2f}" for name in systems)
        print(f"{key[0]:<12}{key[1]:<10}{means}{worst:+8.2f}")


def printed(row: Row, sets: list[str], default: Row) -> str:
    cells = [f"{abs(row[s]):9.2f} ({row[s] - default[s]:+.2f})" for s in sets]
    return f"{row['variant']:<22}" + "".join(f"{cell:>20}" for cell in cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables.fuse_sensitivity", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder with fusion/ and numeric/")
    parser.add_argument("--sets", type=lambda text: text.split(","), help="names of sets; all by default")
    parser.add_argument("--only", type=lambda text: text.split(","), help="names of constants; all by default")
    parser.add_argument("--seeds", type=int, default=3, help="how many other seeds are tried")
    parser.add_argument("--thinned", type=int, default=0, metavar="N", help="thinned sets instead, N of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything measured")
    arguments = parser.parse_args()
    folders = {folder.name: folder for folder in sorted(arguments.data.glob("*/*")) if folder.parent.name in KINDS}
    wanted = [name for name in folders if arguments.sets is None or name in arguments.sets]
    if arguments.thinned:
        told_sets = [folders[name] for name in wanted if folders[name].parent.name == "fusion"]
        found: Any = [row for folder in told_sets for row in measured_thinned(folder, arguments.thinned)]
        print_thinned(found)
    else:
        sets = {name: KINDS[folders[name].parent.name](folders[name]) for name in wanted}
        found = report(sets, arguments.only, arguments.seeds)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def report(sets: dict[str, Measure], only: list[str] | None, seeds: int) -> dict[str, list[Row]]:
    """Print variants as they are measured, then what leaving a set out would have chosen."""
    names, rows = list(sets), list[Row]()
    print(" " * 22 + "".join(f"{name:>20}" for name in names))
    for row in measured(sets, only, seeds):
        rows.append(row)
        print(printed(row, names, rows[0]), flush=True)
    choices = list(left_out(rows, names))
    for choice in choices:
        print(f"without {choice['set']}: {choice['variant']} would have been chosen, {choice['change']:+.2f} there")
    return {"variants": rows, "left_out": choices}


KINDS: dict[str, Callable[[Path], Measure]] = {"fusion": told, "numeric": numeric}


if __name__ == "__main__":
    main()
