"""The pages: figures, calibration or confidence, workers or sources, the most contested items with their claims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gradbase.tables.evaluate import Evaluation
from gradbase.tables.report._charts import Quality, calibration_chart, confidence_chart, quality_chart

if TYPE_CHECKING:
    from gradbase.tables.crowd_tables import CrowdTables
    from gradbase.tables.fuse_tables import FuseTables
    from gradbase.tables.match_tables import MatchTables

_MOST_CONTESTED, _MOST_CLAIMS, _MOST_SHOWN, _MOST_ROWS = 25, 12, 40, 200


def crowd_page(tables: CrowdTables, title: str) -> str:
    """Everything inline, in light and dark, so that the file can be mailed and opened offline."""
    counts = tables.counts
    cards = [
        ("Claims", f"{counts['claims']:,}", f"{counts['rows']:,} rows read"),
        ("Items", f"{counts['items']:,}", f"read as {tables.kind}"),
        ("Workers", f"{counts['workers']:,}", f"{counts['classes']} classes" if counts["classes"] else "numbers"),
    ]
    parts = [
        _heading(title, tables.notes),
        _cards([*cards, *_evaluation_cards(tables.evaluation)]),
        _belief(tables.evaluation, tables.truths),
        _quality("Workers", tables.workers, "worker"),
        _table_of("Who copies whom", tables.copies),
        _contested(tables.truths, ["item"], tables.why, who="worker", what="label"),
        _table_of("Labels most worth buying", tables.next),
    ]
    return _page(title, parts)


def fuse_page(tables: FuseTables, title: str) -> str:
    """As `crowd_page`, with sources, and who copies whom."""
    counts = tables.counts
    kinds = ", ".join(f"{name}: {kind}" for name, kind in list(tables.kinds.items())[:4])
    cards = [
        ("Claims", f"{counts['claims']:,}", f"{counts['rows']:,} rows read"),
        ("Items", f"{counts['items']:,}", kinds),
        ("Sources", f"{counts['sources']:,}", f"{counts['copies']} copy another"),
    ]
    parts = [
        _heading(title, tables.notes),
        _cards([*cards, *_evaluation_cards(tables.evaluation)]),
        _belief(tables.evaluation, tables.truths),
        _quality("Sources", tables.sources, "source"),
        _table_of("Who copies whom", tables.copies),
        _contested(tables.truths, ["object", "attribute"], tables.why, who="source", what="value"),
        _table_of("Claims most worth buying", tables.next),
        _table_of("What was tried on claims held out", tables.gates),
    ]
    return _page(title, parts)


def match_page(tables: MatchTables, title: str) -> str:
    """Pairs and their probability; the pairs that are hardest to tell."""
    cards = [(name, f"{value:,}", more) for name, value, more in tables.figures()]
    parts = [
        _heading(title, tables.notes),
        _cards([*cards, *_evaluation_cards(tables.evaluation)]),
        _belief(tables.evaluation, tables.pairs),
        _table_of("Pairs that are hardest to tell", tables.hardest(_MOST_CONTESTED)),
    ]
    return _page(title, parts)


def _page(title: str, parts: Iterable[str]) -> str:
    style = files("gradbase.explain").joinpath("page.css").read_text("utf-8")  # one look for every page
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · gradbase</title>\n<style>\n{style}</style>\n"
        f"</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _heading(title: str, notes: Sequence[str]) -> str:
    return "\n".join([f"<h1>{escape(title)}</h1>", *(f'<p class="note">{escape(note)}</p>' for note in notes)])


def _cards(cards: Iterable[tuple[str, str, str]]) -> str:
    items = (
        f'<div><dt>{escape(name)}</dt><dd>{escape(figure)}</dd><dd class="small">{escape(more)}</dd></div>'
        for name, figure, more in cards
    )
    return f'<dl class="cards">{"".join(items)}</dl>'


def _evaluation_cards(found: Evaluation | None) -> list[tuple[str, str, str]]:
    if found is None:
        return []
    counted = f"{found.items} items with gold"
    if found.mean_absolute_error is not None:
        mean = f"mean of the claims {found.mean_mean_absolute_error:.4g}; {counted}"
        return [("Mean absolute error", f"{found.mean_absolute_error:.4g}", mean)]
    vote = "" if found.majority_accuracy is None else f"majority vote {found.majority_accuracy:.1%}; "
    cards = [("Accuracy", f"{found.accuracy:.1%}", f"{vote}{counted}")]
    likelihood = found.negative_log_likelihood
    more = "" if likelihood is None else f"negative log-likelihood {likelihood:.3f}"
    if len(found.f1) == 2:
        name, score = list(found.f1.items())[1]
        cards.append((f"F1 of {name}", f"{score:.1%}", "of two classes"))
    return [*cards, ("Calibration error", f"{found.calibration_error:.3f}", more)]


def _belief(found: Evaluation | None, rows: Any) -> str:
    """With gold, whether probabilities can be believed; without, what they are."""
    if found is not None and found.bins:
        words = "Points on the dashed line are as often right as their probability says; their area is their share."
        return f"<h2>Calibration</h2>\n<p>{words}</p>\n<figure>{calibration_chart(found.bins)}</figure>"
    probabilities = [p for p in rows["probability"].to_pylist() if p is not None]
    if not probabilities:
        return ""
    words = "How sure the answers are. With gold, this place shows whether that can be believed."
    return f"<h2>Confidence</h2>\n<p>{words}</p>\n<figure>{confidence_chart(probabilities)}</figure>"


def _quality(title: str, rows: Any, who: str) -> str:
    """The chart of those with most claims, and a table of more of them."""
    found = sorted(rows.to_pylist(), key=lambda row: (-row["claims"], str(row[who])))
    many = len({row.get("attribute") for row in found}) > 1
    shown = [_quality_row(row, who, many) for row in found[:_MOST_SHOWN] if row["quality"] is not None]
    if not shown:
        return ""
    more = f" The {_MOST_SHOWN} of {len(found)} with most claims are drawn." if len(found) > _MOST_SHOWN else ""
    cells = [[_cell(row.get(name)) for name in _plain(rows)] for row in found[:_MOST_ROWS]]
    return (
        f"<h2>{title}</h2>\n<p>Quality is the chance of being right, with its interval.{more}</p>\n"
        f"<figure>{quality_chart(shown)}</figure>\n"
        f"<details><summary>As a table</summary>{_html_table(_plain(rows), cells)}</details>"
    )


def _quality_row(row: Mapping[str, Any], who: str, many: bool) -> Quality:
    name = f"{row[who]} · {row['attribute']}" if many and row.get("attribute") else str(row[who])
    low = row["quality"] if row["quality_low"] is None else row["quality_low"]
    high = row["quality"] if row["quality_high"] is None else row["quality_high"]
    return Quality(name, row["quality"], low, high, row["claims"])


def _plain(rows: Any) -> list[str]:
    """Columns without lists in them."""
    return [field.name for field in rows.schema if not str(field.type).startswith("list")]


def _contested(truths: Any, keys: list[str], why: Any, *, who: str, what: str) -> str:
    """Items whose runner-up comes closest, of those with several claims, with who said what."""
    rows = [row for row in truths.to_pylist() if row["claims"] > 1 and row["runner_up_probability"] is not None]
    rows.sort(key=lambda row: (row["probability"] - row["runner_up_probability"], *(str(row[k]) for k in keys)))
    chosen = rows[:_MOST_CONTESTED]
    if not chosen:
        return ""
    said = _claims_of({tuple(row[key] for key in keys) for row in chosen}, keys, why)
    names = [*keys, *(["label"] if "label" in truths.column_names else []), "value", "probability", "runner_up",
             "runner_up_probability"]  # fmt: skip
    cells = [
        [*(_cell(row[name]) for name in names), _said(said.get(tuple(row[k] for k in keys), []), who, what)]
        for row in chosen
    ]
    words = "Where the runner-up comes closest; in brackets what each claim adds to the log-odds of the value."
    return f"<h2>Most contested items</h2>\n<p>{words}</p>\n{_html_table([*names, 'claims'], cells)}"


def _claims_of(chosen: set[tuple[Any, ...]], keys: list[str], why: Any) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """The rows of `why` of the chosen items; filtered in Arrow, for there may be very many."""
    import pyarrow
    from pyarrow import compute

    wanted = pyarrow.array([key[0] for key in chosen], why[keys[0]].type)
    said: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in why.filter(compute.is_in(why[keys[0]], wanted)).to_pylist():
        said.setdefault(tuple(row[key] for key in keys), []).append(row)
    return said


def _said(rows: Sequence[Mapping[str, Any]], who: str, what: str) -> str:
    claims = [row for row in rows if row[who] is not None]
    ordered = sorted(claims, key=lambda row: (-abs(row["log_odds"] or 0), str(row[who])))
    told = [
        f"{escape(str(row[who]))}: {escape(str(row['tag'] if row.get('tag') is not None else row[what]))}"
        f' <span class="quiet">({row["log_odds"] or 0:+.2f})</span>'
        for row in ordered[:_MOST_CLAIMS]
    ]
    rest = f"and {len(claims) - _MOST_CLAIMS} more" if len(claims) > _MOST_CLAIMS else ""
    return f'<td class="why">{"; ".join(filter(None, [*told, rest]))}</td>'


def _table_of(title: str, rows: Any) -> str:
    if rows is None or not rows.num_rows:
        return ""
    names = _plain(rows)
    cells = [[_cell(row[name]) for name in names] for row in rows.slice(0, _MOST_ROWS).to_pylist()]
    more = f"<p>The first {_MOST_ROWS} of {rows.num_rows}.</p>\n" if rows.num_rows > _MOST_ROWS else ""
    return f"<h2>{escape(title)}</h2>\n{more}{_html_table(names, cells)}"


def _html_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name.replace("_", " "))}</th>' for name in names)
    marked = ("".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in marked)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return '<span class="quiet">·</span>'
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return escape(text if len(text) <= 80 else f"{text[:79]}…")
