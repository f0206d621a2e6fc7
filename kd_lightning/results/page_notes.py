"""The numbered notes below a table of RESULTS.md: commands, seeds and machine of its rows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from kd_lightning.results.records import Record
from kd_lightning.results.run_index import Stat

PRECISION = {"32-true": "fp32", "bf16-mixed": "bf16"}
BESIDE = {"teacher": "teacher", "agreement": "agreement", "scratch": "real data", "noise": "noise"}
"""Metrics that a note lists if no row of the table shows them, and their names in the note."""


class Notes:
    """Numbers each set of circumstances, and writes its note."""

    def __init__(self, digits: int) -> None:
        self.digits = digits
        self.groups: dict[tuple[str, ...], list[Record]] = {}
        self.values: dict[tuple[str, ...], dict[str, str]] = {}
        self.beside: dict[tuple[str, ...], list[str]] = {}

    def number(self, records: Sequence[Record]) -> list[int]:
        """The numbers of the notes of these records."""
        for record in records:
            group = self.groups.setdefault(circumstances(record), [])
            if record not in group:
                group.append(record)
        places = list(self.groups)
        return sorted({places.index(circumstances(record)) + 1 for record in records})

    def add_values(self, title: str, records: Sequence[Record], metric: str) -> None:
        """List the values of a row by seed, in the notes of its records."""
        for key, group in self.groups.items():
            found = [stat.mean for record in group if record in records and (stat := record.metric(metric))]
            if found and any(record.seed is not None for record in group):
                self.values.setdefault(key, {})[title] = ", ".join(f"{value:.{self.digits}f}" for value in found)

    def add_beside(self, shown: set[str], metric: str) -> None:
        """List the teacher's metric, the agreement and the controls that the table's rows do not show."""
        for key, group in self.groups.items():
            for who, name in BESIDE.items():
                wanted = "test/agreement" if who == "agreement" else f"{who}/{metric.rpartition('/')[2]}"
                stat = stat_of(group, wanted)
                if stat is not None and wanted not in shown:
                    self.beside.setdefault(key, []).append(f"{name} {in_words(stat, self.digits)}")

    def lines(self) -> list[str]:
        """One line of Markdown for every note."""
        return [
            f"- **{number}** {'; '.join(_words(key, group, self.values.get(key, {}), self.beside.get(key, [])))}"
            for number, (key, group) in enumerate(self.groups.items(), 1)
        ]


def stat_of(records: Sequence[Record], metric: str) -> Stat | None:
    """A metric over records that differ in their seeds; None if no record has it."""
    found = [stat for record in records if (stat := record.metric(metric))]
    if len(found) < 2:
        return found[0] if found else None
    return Stat.of([stat.mean for stat in found])


def in_words(stat: Stat, digits: int) -> str:
    """Mean and spread: ``0.9705 ± 0.0049``; only the mean if there is no spread."""
    spread = f" ± {stat.std:.{digits}f}" if stat.std else ""
    return f"{stat.mean:,.{digits}f}{spread}"


def circumstances(record: Record) -> tuple[str, ...]:
    """What records with a common note share: command except for the seed, queries, machine and remark."""
    holds = record.holds
    threads = holds.get("threads")
    machine = [
        holds.get("device"),
        threads and f"{threads} thread{'s' * (threads > 1)}",
        PRECISION.get(holds.get("precision", ""), holds.get("precision")),
        "torch" in holds.get("versions", {}) and f"torch {holds['versions']['torch'].partition('+')[0]}",
    ]
    queries = f"{holds['queries']:,} queries" if holds.get("queries") else ""
    command = re.sub(r"(?<!\S)seed=\d+(?!\S)", "seed=N", holds.get("command", ""))
    return command, queries, ", ".join(word for word in machine if word), holds.get("note", ""), holds["source"]


def _words(
    key: tuple[str, ...], group: Sequence[Record], values: Mapping[str, str], beside: Sequence[str]
) -> list[str]:
    command, queries, machine, note, source = key
    seeds = list(dict.fromkeys(str(record.seed) for record in group if record.seed is not None))
    if len(seeds) == 1:
        command = command.replace("seed=N", f"seed={seeds[0]}")
    measured = [f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"] if seeds else []
    if len(values) == 1:
        measured = [f"{measured[0]}: {next(iter(values.values()))}"]
    elif len(seeds) > 1:
        measured += [f"{title}: {said}" for title, said in values.items()]
    sizes = [
        _span([record.holds.get("updates") for record in group], "updates"),
        _span([record.holds.get("images_synthesised") for record in group], "images synthesised"),
        queries,
        _span([record.holds.get("seconds", {}).get("student") for record in group], "s for the student"),
    ]
    dates = sorted({record.holds["date"] for record in group if "date" in record.holds})
    when = " to ".join(dict.fromkeys([dates[0], dates[-1]])) if dates else ""
    known = f"recorded {when}" if source == "recorded" else when
    words = [f"`{command}`" if command else "", *measured, *beside, *sizes, note, machine, known]
    return [word for word in words if word]


def _span(values: Sequence[float | None], unit: str) -> str:
    """Range of the known values other than 0: ``12 to 14 s``."""
    known = [value for value in values if value]
    ends = dict.fromkeys(f"{value:,.0f}" for value in (min(known), max(known))) if known else []
    return f"{' to '.join(ends)} {unit}" if known else ""
