"""The operators as functions: `gradbase.crowd`, `gradbase.fuse` and `gradbase.match`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gradbase.common.errors import TableError
from gradbase.common.units import parse_memory
from gradbase.tables.crowd_tables import (
    CrowdTables,
    compare,
    features_for,
    load_features,
    next_of,
    read_claims,
    read_gold,
    refuse_strangers,
    tables_of,
)
from gradbase.tables.fuse_tables import (
    FuseTables,
    attribute_options,
    compare_fuse,
    fuse_tables_of,
    load_hierarchy,
    load_source_features,
    read_fuse_claims,
    read_fuse_gold,
)
from gradbase.tables.io import modules
from gradbase.tables.match_tables import (
    MatchTables,
    golden_table,
    match_tables_of,
    matched,
)
from gradbase.tables.state import load_state

Progress = Callable[[str, int, int], None]


def crowd(
    source: Any,
    *,
    table: str | None = None,
    query: str | None = None,
    columns: Mapping[str, str] | None = None,
    kind: str = "auto",
    features: Any = None,
    feature_items: Any = None,
    gold: Any = None,
    next: int = 0,
    state: Any = None,
    seed: int = 0,
    memory: str | int | float | None = None,
    catalog: str | os.PathLike[str] | None = None,
    into: Any = None,
    on_progress: Progress | None = None,
) -> CrowdTables:
    """What is true of each item, from the labels of many workers.

    source: a CSV, Parquet, DuckDB or SQLite file; "postgresql://..."; a DuckDB connection or relation; a pandas
        frame, an Arrow table, or a mapping of arrays. `table` or `query` say what to read of a database; a query on
        a file or frame calls it `input`. One row a label: item, worker, label; for sets of yes and no also answer.
    columns: role to column, where convention does not find it: {"item": "qid"}.
    kind: "classes", "numbers", "sets", or "auto" to see by the column's name and its entries.
    features: a table of items and what is known of them (numbers, texts, vectors), or a matrix (.npy or array) whose
        rows are `feature_items`. Items without labels are then predicted.
    gold: a table of items and their true labels, to compare with.
    next: how many labels most worth buying to list.
    state: what an earlier call returned as `state`, or the file it was saved to: labels are added to it.
    seed, memory, catalog: of training: the random numbers, the budget of a step as in `compile`, the statistics.
    into: a DuckDB connection that gets the views crowd_truths, crowd_workers, crowd_copies and crowd_next.
    on_progress: called with (stage, done, total).

    Raises TableError for inputs that cannot be read or understood, UsageError for options that make no sense.
    """
    from gradbase.tables.crowd import Config, State, infer

    parse_memory(memory)
    if features is None and feature_items is not None:
        raise TableError("items of features are given without features", "name the matrix (.npy) too")
    found = None if features is None else load_features(features, feature_items, columns)
    claims, rows, notes = read_claims(source, table=table, query=query, columns=columns, kind=kind, features=found)
    golds = None if gold is None else read_gold(gold, claims.kind, columns)
    if golds is not None and state is None:
        refuse_strangers(golds, claims)
    config = Config(seed=seed, memory=memory, catalog=catalog, on_progress=on_progress)
    known = None if state is None else State.from_tables(load_state(state, "crowd"))
    result = infer(claims, None if found is None else features_for(claims, found), config, known)
    evaluation = None if golds is None else compare(result, golds)
    bought = next_of(result, next) if next else None
    tables = tables_of(result, rows, notes, bought, evaluation)
    if into is not None:
        views = {"truths": tables.truths, "workers": tables.workers, "copies": tables.copies, "next": bought}
        register(into, {f"crowd_{name}": rows for name, rows in views.items()})
    return tables


def register(connection: Any, tables: Mapping[str, Any]) -> None:
    """Make Arrow tables temporary views of a DuckDB connection. Raises TableError where a name is taken."""
    duckdb, _ = modules()
    if not isinstance(connection, duckdb.DuckDBPyConnection):
        raise TableError(f"into is a {type(connection).__name__}", "expected a DuckDB connection")
    taken = {row[0] for row in connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    for name, rows in tables.items():
        if rows is None:
            continue
        if name in taken:
            raise TableError(f"the connection has a table {name!r} of its own", "rename it, or give another connection")
        connection.register(name, rows)


def fuse(
    source: Any,
    *,
    table: str | None = None,
    query: str | None = None,
    columns: Mapping[str, str] | None = None,
    kinds: Mapping[str, str] | None = None,
    hierarchy: Any = None,
    source_features: Any = None,
    gold: Any = None,
    next: int = 0,
    state: Any = None,
    copies: str = "gated",
    seed: int = 0,
    memory: str | int | None = None,
    into: Any = None,
) -> FuseTables:
    """What is true of each object, from the claims of many sources.

    source, table, query, columns, gold, next, state, seed, memory: as of `crowd`; one row a claim: object,
        attribute (optional), source, value; time (a number or a date) and confidence (0 to 1) where they are known.
    kinds: attribute to how its values are read ("text", "authors", ...); by default seen by the values.
    hierarchy: what contains what: a table of id, name and the parent's id, or of name and the parent's name.
    source_features: a table of sources and numbers known of them.
    copies: "gated" keeps copying between sources where it predicts held-out claims better, or "off", "ungated".
    into: a DuckDB connection that gets the views fuse_truths, fuse_sources, fuse_copies and fuse_next.

    Raises TableError for inputs that cannot be read or understood, UsageError for options that make no sense.
    """
    from gradbase.tables.fuse import Config, Statistics, infer

    parse_memory(memory)
    config = Config(seed=seed, memory=memory, copies=copies)
    claims, coded, notes = read_fuse_claims(source, table=table, query=query, columns=columns)
    known = None if state is None else Statistics(**load_state(state, "fuse"))
    golds = None if gold is None else read_fuse_gold(gold, columns)
    result = infer(
        claims,
        attributes=attribute_options(claims, kinds or {}),
        hierarchy=None if hierarchy is None else load_hierarchy(hierarchy),
        source_features=None if source_features is None else load_source_features(source_features, claims, columns),
        config=config,
        statistics=known,
    )
    evaluation = None if golds is None else compare_fuse(result, claims, golds)
    tables = fuse_tables_of(result, claims, coded, notes, next, evaluation)
    if into is not None:
        found = {"truths": tables.truths, "sources": tables.sources, "copies": tables.copies, "next": tables.next}
        register(into, {f"fuse_{name}": rows for name, rows in found.items()})
    return tables


def match(
    a: Any,
    b: Any = None,
    *,
    id: str | None = None,
    source_column: str | None = None,
    labelled: Any = None,
    gold: Any = None,
    golden: bool = False,
    threshold: float | None = None,
    seed: int = 0,
    memory: str | int | float | None = None,
    into: Any = None,
) -> MatchTables:
    """Which records of one table, or of two, are about the same thing.

    a, b: as the source of `crowd`; all columns but the id are compared. A table of candidate pairs, with columns
        l_NAME and r_NAME, is matched row by row instead; then `labelled` and `gold` have the same columns and `label`.
    id: the column of ids; by default one called id, else records are numbered from 0.
    source_column: the column that says who a record is from, for claims; by default the table speaks.
    labelled: a table of left, right (ids) and label (1 is a match) to learn from; may be left out.
    gold: such a table to compare with.
    golden: also fuse what the records of a cluster say, into one row a cluster.
    threshold: the least probability of a match; by default it is chosen.
    into: a DuckDB connection that gets the views match_pairs, match_clusters, match_claims and match_golden.

    Raises TableError for inputs that cannot be read or understood, UsageError for options that make no sense.
    """
    from gradbase.tables import match as matching

    config = matching.Config(seed=seed, threshold=threshold, memory=memory)
    result, evaluation = matched(a, b, id, labelled, gold, config)
    claims = matching.claims(result, source_column)
    tables = match_tables_of(result, claims, evaluation)
    if golden:
        fused = fuse(tables.claims, seed=seed)
        columns = [name for name in result.records_a.columns if name != source_column]
        tables = replace(tables, golden=golden_table(tables.clusters, columns, fused.truths, fused.why))
    if into is not None:
        found = {"pairs": tables.pairs, "clusters": tables.clusters, "claims": tables.claims, "golden": tables.golden}
        register(into, {f"match_{name}": rows for name, rows in found.items()})
    return tables
