"""RESULTS.md, written from the records of ``results/`` and from ``results/rows.yaml``, which names tables and rows.

``rows.yaml`` holds a ``title``, a ``text`` and ``tables``. A table has ``folder`` (of its records), ``title``,
``text``, ``head`` (the name of its first column), ``metric`` (default ``test/accuracy``), ``digits`` (4),
``less_is_better`` (false) and ``rows``. A row has ``title``, ``run`` (the name of its records, or FOLDER/NAME) and,
optionally,

- ``metric``: of the same records, another; ``seed``: only the run of this seed;
- ``paper``: its number, only where the row runs the paper's setting; ``published``: text, where that is, or what
  the paper reports at another setting;
- ``against``: the title of the row it is compared with, seed by seed.

A table with ``columns`` shows several measures instead: a column has ``title`` and, optionally, ``metric``,
``digits``, ``over`` (a metric: the quotient is printed behind the value) and ``run``, which takes the place of the
``*`` in a row's ``run``. ``average`` is the title of a last row, with the mean and the deviation of every column.

``today`` maps words of recorded commands, one or several, to what is typed in their place now; the page shows that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kd_lightning.errors import UserError
from kd_lightning.results.page_notes import Notes, in_words, stat_of
from kd_lightning.results.paired import paired_difference
from kd_lightning.results.records import Record, read_records
from kd_lightning.results.run_index import NOTHING, Stat

ROWS = "rows.yaml"
WIDTH = 5
METRIC, DIGITS = "test/accuracy", 4

# Required and optional keys of each mapping in rows.yaml.
KEYS = {
    "page": ({"title", "tables"}, {"text", "today"}),
    "table": (
        {"folder", "title", "rows"},
        {"text", "head", "metric", "digits", "less_is_better", "columns", "average"},
    ),
    "column": ({"title"}, {"metric", "digits", "over", "run"}),
    "row": ({"title", "run"}, {"metric", "seed", "paper", "published", "against"}),
}

Find = Callable[[Mapping[str, Any], Mapping[str, Any]], list[Record]]


def results_page(folder: Path) -> str:
    """The Markdown text of the page.

    Raises:
        UserError: ``rows.yaml`` or a record cannot be read, a row has no record, or a record has no row.
    """
    path = folder / ROWS
    try:
        page = _checked(yaml.safe_load(path.read_text()), "page")
        records = [in_words_of_today(record, page.get("today", {})) for record in read_records(folder)]
        used = set[tuple[str, str]]()
        parts = [f"# {page['title']}", page.get("text", "").strip()]
        for node in page["tables"]:
            table = _checked(node, "table")
            parts += [f"## {table['title']}", table.get("text", "").strip(), *_table(table, records, used)]
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(folder) not in str(error) else str(error)) from error
    except Exception as error:  # invalid YAML, or YAML of another structure
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if left := sorted({(record.table, record.name) for record in records} - used):
        raise UserError(f"{path} has no row for the records {', '.join(map('/'.join, left))}: add one, or remove them")
    return "\n\n".join(part for part in parts if part) + "\n"


def in_words_of_today(record: Record, today: Mapping[str, str]) -> Record:
    """A record whose command is spelled so that it runs now.

    Args:
        record: as it was written.
        today: words of old commands -> what is typed in their place.
    """
    if (command := record.holds.get("command")) is None:
        return record
    said = f" {command} "
    for then, now in today.items():
        said = said.replace(f" {then} ", f" {now} ")
    return replace(record, holds={**record.holds, "command": said[1:-1]})


def _checked(node: Any, kind: str) -> dict[str, Any]:
    needed, optional = KEYS[kind]
    if not isinstance(node, dict):
        raise UserError(f"a {kind} is a mapping with {', '.join(sorted(needed))}, not {node!r}")
    called = f"{kind} {node.get('title', '')}".rstrip()
    if unknown := set(node) - needed - optional:
        raise UserError(f"{called}: unknown key {min(unknown)}; known: {', '.join(sorted(needed | optional))}")
    if lacks := needed - set(node):
        raise UserError(f"{called}: {min(lacks)} is missing")
    return {str(key): value for key, value in node.items()}


def _table(table: Mapping[str, Any], records: Sequence[Record], used: set[tuple[str, str]]) -> list[str]:
    """A table in Markdown, and the notes below it."""

    def find(row: Mapping[str, Any], column: Mapping[str, Any]) -> list[Record]:
        folder, _, name = row["run"].replace("*", column.get("run", "*")).rpartition("/")
        key = folder or table["folder"], name
        found = [record for record in records if (record.table, record.name) == key]
        if not found:
            raise UserError(f"table {table['title']}: no record {'/'.join(key)}_s*.json or {name}_mean.json")
        used.add(key)
        return [record for record in found if row.get("seed") in (None, record.seed)]

    rows = [_checked(row, "row") for row in table["rows"]]
    return _measures(table, rows, find) if "columns" in table else _comparison(table, rows, find)


def _measures(table: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], find: Find) -> list[str]:
    """A table of several measures per row."""
    columns = [{**table, **_checked(column, "column")} for column in table["columns"]]
    found = [[find(row, column) for column in columns] for row in rows]
    notes = Notes(table.get("digits", DIGITS))
    numbers = [notes.number([record for cell in line for record in cell]) for line in found]
    lines = [
        [row["title"], *(_measure(cell, column) for cell, column in zip(line, columns, strict=True))]
        for row, line in zip(rows, found, strict=True)
    ]
    if len(notes.lines()) > 1:
        for line, own in zip(lines, numbers, strict=True):
            line[0] += f" [{', '.join(map(str, own))}]"
    if "average" in table:
        lines.append([table["average"], *map(_average, zip(*found, strict=True), columns)])
    headers = [table.get("head", ""), *(column["title"] for column in columns)]
    return [_markdown(table, headers, lines), "\n".join(notes.lines())]


def _measure(records: Sequence[Record], column: Mapping[str, Any]) -> str:
    stat, base = stat_of(records, column.get("metric", METRIC)), stat_of(records, column.get("over", ""))
    if stat is None:
        return NOTHING
    digits = column.get("digits", DIGITS)
    value = f"{stat.mean:.1e}" if digits == "e" else in_words(stat, digits)
    return value if base is None else f"{value} ({stat.mean / base.mean:.3f})"


def _average(cells: Iterable[Sequence[Record]], column: Mapping[str, Any]) -> str:
    stats = [stat_of(cell, column.get("metric", METRIC)) for cell in cells]
    return in_words(Stat.of([stat.mean for stat in stats if stat]), column.get("digits", DIGITS))


def _comparison(table: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], find: Find) -> list[str]:
    """A table of one measure, with the paper's number and the row it is compared with; empty columns are dropped."""
    metric, digits = table.get("metric", METRIC), table.get("digits", DIGITS)
    found = {row["title"]: (find(row, {}), row.get("metric", metric)) for row in rows}
    teachers = f"teacher/{metric.rpartition('/')[2]}"
    notes = Notes(digits)
    numbers = {title: notes.number(records) for title, (records, _) in found.items()}
    columns = {
        "paper": [NOTHING if row.get("paper") is None else f"{row['paper']:.{digits}f}" for row in rows],
        "teacher": [_measure(records, {"metric": teachers, "digits": digits}) for records, _ in found.values()],
        "here": [_here(*found[row["title"]], digits) for row in rows],
        "difference (95 % interval)": [_difference(row, found, table) for row in rows],
        "note": [", ".join(map(str, numbers[row["title"]])) for row in rows],
    }
    columns = {name: cells for name, cells in columns.items() if set(cells) != {NOTHING}}
    if len(columns) == WIDTH:
        del columns["teacher"]
    for title, (records, measured) in found.items():
        notes.add_values(title, records, measured)
    notes.add_beside(
        {measured for _, measured in found.values()} | ({teachers} if "teacher" in columns else set()), metric
    )
    published = [f"- {row['title']}, published: {row['published']}" for row in rows if "published" in row]
    lines = [list(line) for line in zip(found, *columns.values(), strict=True)]
    return [_markdown(table, [table.get("head", ""), *columns], lines), "\n".join([*notes.lines(), *published])]


def _here(records: Sequence[Record], metric: str, digits: int) -> str:
    stat = stat_of(records, metric)
    return NOTHING if stat is None else f"{in_words(stat, digits)} (n {stat.n})"


def _difference(row: Mapping[str, Any], found: Mapping[str, tuple[list[Record], str]], table: Mapping[str, Any]) -> str:
    """The paired difference to the row named by ``against``; the difference of the means if no seeds are common."""
    title, digits = row.get("against"), table.get("digits", DIGITS)
    if title is None:
        return NOTHING
    if title not in found:
        raise UserError(f"row {row['title']}: against: {title} is no row of the table; rows: {', '.join(found)}")
    ours, theirs = (
        {one.seed: stat.mean for one in records if one.seed is not None and (stat := one.metric(metric))}
        for records, metric in (found[row["title"]], found[title])
    )
    if not set(ours) & set(theirs):
        here, there = (stat_of(*found[name]) for name in (row["title"], title))
        return f"{here.mean - there.mean:+.{digits}f} vs {title}, means only" if here and there else NOTHING
    difference = paired_difference(ours, theirs)
    verdict = difference.verdict(less_is_better=table.get("less_is_better", False))
    said = f"{difference.in_words(digits)} vs {title}"
    return f"{said}, n {difference.n}: {verdict}" if verdict else f"{said}, one seed"


def _markdown(table: Mapping[str, Any], headers: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    if len(headers) > WIDTH:
        raise UserError(f"table {table['title']} has {len(headers)} columns, more than {WIDTH}: turn it, or split it")
    rows = [headers, ["---"] * len(headers), *([cell.replace("|", "\\|") for cell in line] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
