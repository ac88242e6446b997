"""The tables of the catalogue as data: every column declared once, with type, unit and meaning.

The schema, the check that a file is ours, `describe()` and the table in this room's README are all made from
`TABLES`; a column exists because it stands here.
"""

from __future__ import annotations

from dataclasses import dataclass

# "grdb" in the header of every catalogue, so that a foreign database is told from a damaged one of ours.
APPLICATION_ID = 0x67726462
SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Column:
    """One column: SQLite type, unit ("" where there is none), what it means, and its constraint."""

    name: str
    type: str
    unit: str
    description: str
    constraint: str = "NOT NULL"


@dataclass(frozen=True, slots=True)
class Table:
    """One table a user may query. `key` names the columns of its primary key."""

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]

    @property
    def column_names(self) -> tuple[str, ...]:
        return tuple(column.name for column in self.columns)

    def create_sql(self) -> str:
        """The CREATE TABLE statement."""
        lines = [f"{column.name} {column.type} {column.constraint}".rstrip() for column in self.columns]
        if self.key != ("id",):
            lines.append(f"PRIMARY KEY ({', '.join(self.key)})")
        return f"CREATE TABLE {self.name} ({', '.join(lines)})"

    def insert_sql(self, *, replace: bool) -> str:
        """An INSERT of every column except a generated id; `replace` overwrites the row of the same key."""
        names = [name for name in self.column_names if name != "id"]
        verb = "INSERT OR REPLACE" if replace else "INSERT"
        return f"{verb} INTO {self.name} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"


_MEASURED_AT = Column("measured_at", "TEXT", "UTC", "when it was last measured, ISO 8601")
_DEVICE = Column("device", "TEXT", "", "what it was measured on, as the executor names it")

STATISTICS = Table(
    "statistics",
    "one row per operator, device, torch version and number of threads: what it was measured to cost",
    (
        Column("op", "TEXT", "", 'the operator\'s target, "aten.addmm.default"'),
        Column("signature", "TEXT", "", "target, dtypes, shapes, strides where they matter, other arguments"),
        _DEVICE,
        Column("torch_version", "TEXT", "", "torch.__version__ of the measurement"),
        Column("threads", "INTEGER", "threads", "compute threads the operator could use"),
        Column("count", "INTEGER", "samples", "timed runs behind this row", "NOT NULL CHECK (count > 0)"),
        Column("time_us", "REAL", "µs", "median time of one run", "NOT NULL CHECK (time_us >= 0)"),
        Column("spread_us", "REAL", "µs", "interquartile range of the times", "NOT NULL CHECK (spread_us >= 0)"),
        Column("scratch_bytes", "INTEGER", "bytes", "most it allocated beside its results"),
        Column("outputs", "TEXT", "", "JSON [[nbytes, [strides]], ...] where real outputs differ from traced; else []"),
        Column("details", "TEXT", "", "JSON kept for the executor, or empty"),
        Column("flops", "INTEGER", "operations", "arithmetic operations of one run"),
        Column("moved_bytes", "INTEGER", "bytes", "bytes read plus bytes written by one run"),
        _MEASURED_AT,
    ),
    ("signature", "device", "torch_version", "threads"),
)

TIERS = Table(
    "tiers",
    "one row per slow tier: what paging to it was measured to cost",
    (
        Column("medium", "TEXT", "", "host and device id of the directory, or the name of a link"),
        Column("name", "TEXT", "", "what to call it: the directory when it was measured"),
        Column("write_bytes_per_us", "REAL", "bytes/µs", "sustained writing beside computing (1 byte/µs is 1 MB/s)"),
        Column("read_bytes_per_us", "REAL", "bytes/µs", "sustained reading beside computing"),
        Column("latency_us", "REAL", "µs", "from asking for a small transfer to its end"),
        Column("compute_tax", "REAL", "share", "µs of computing lost per µs of transfer"),
        Column("duplex", "INTEGER", "0 or 1", "1: reads and writes run at full speed side by side"),
        Column("alignment_bytes", "INTEGER", "bytes", "offsets and lengths must be multiples of this"),
        _MEASURED_AT,
    ),
    ("medium",),
)

RUNS = Table(
    "runs",
    "one row per finished run: what was predicted beside what was measured",
    (
        Column("id", "INTEGER", "", "number of the run", "PRIMARY KEY"),
        Column("recipe", "TEXT", "", "the recipe's file or name"),
        Column("plan_digest", "TEXT", "", "digest of the plan's text"),
        _DEVICE,
        Column("budget_bytes", "INTEGER", "bytes", "the budget; NULL when no limit was asked for", ""),
        Column("predicted_peak_bytes", "INTEGER", "bytes", "peak memory of the step by the plan"),
        Column("measured_peak_bytes", "INTEGER", "bytes", "peak memory of the step as it ran; NULL if not known", ""),
        Column("predicted_time_us", "REAL", "µs", "time of one step by the plan"),
        Column("median_step_time_us", "REAL", "µs", "median time of one step as it ran"),
        Column("steps", "INTEGER", "steps", "steps that were run"),
        Column("started_at", "TEXT", "UTC", "when the run started, ISO 8601"),
    ),
    ("id",),
)

PROFILES = Table(
    "profiles",
    "one row per measured device: the figures of its roofline",
    (
        Column("device", "TEXT", "", "what was measured"),
        Column("threads", "INTEGER", "threads", "compute threads during the measurement"),
        Column("document", "TEXT", "", "JSON of the device profile, with the source of every figure"),
        _MEASURED_AT,
    ),
    ("device", "threads"),
)

TABLES: tuple[Table, ...] = (STATISTICS, TIERS, RUNS, PROFILES)


def describe() -> str:
    """The tables and columns a query may use, as Markdown."""
    return "\n\n".join(_describe_table(table) for table in TABLES)


def _describe_table(table: Table) -> str:
    header = [f"`{table.name}`: {table.description}.", "", "| column | type | unit | meaning |", "|---|---|---|---|"]
    rows = [f"| {c.name} | {c.type} | {c.unit} | {c.description} |" for c in table.columns]
    return "\n".join(header + rows)
