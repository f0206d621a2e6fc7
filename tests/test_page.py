import json
from pathlib import Path

import pytest
from test_records import kept
from test_report import run_at

from kd_lightning.cli.report import main
from kd_lightning.errors import UserError
from kd_lightning.results.page import results_page
from kd_lightning.results.records import read_records

ROOT = Path(__file__).parents[1]

ROWS = """
title: Results
tables:
  - title: Table
    folder: mnist
    head: method
    rows:
      - {title: DAFL, run: dafl, against: noise}
      - {title: noise, run: dafl, metric: noise/accuracy, paper: 0.5}
"""


def folder_of(tmp_path, rows=ROWS, **values):
    """A folder with ``rows.yaml`` and a record for each seed of each run."""
    for name, by_seed in values.items():
        for seed, (accuracy, noise) in enumerate(by_seed):
            kept(tmp_path, f"{name}_s{seed}", seed=seed, metrics={"test/accuracy": accuracy, "noise/accuracy": noise})
    (tmp_path / "rows.yaml").write_text(rows)
    return tmp_path


def cells(page, first):
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {first} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_results_md_is_what_the_records_make_of_it():
    page = results_page(ROOT / "results")
    assert (ROOT / "RESULTS.md").read_text() == page, (
        "RESULTS.md is written, not edited: kd-report results --markdown > RESULTS.md"
    )


def test_every_table_of_results_md_is_at_most_five_columns_wide():
    rows = [line for line in (ROOT / "RESULTS.md").read_text().splitlines() if line.startswith("|")]
    assert rows
    assert max(line.replace("\\|", "").count("|") - 1 for line in rows) <= 5


def test_records_kept_here_were_run_or_recorded_and_say_when():
    for record in read_records(ROOT / "results"):
        assert record.holds.get("date"), (record.table, record.name)
        assert record.holds["metrics"], (record.table, record.name)


def test_the_command_prints_the_page(tmp_path, capsys):
    folder = folder_of(tmp_path, dafl=[(0.9, 0.5)])
    assert main([str(folder), "--markdown"]) == 0
    assert capsys.readouterr().out == results_page(folder)


def test_commands_are_shown_as_they_are_typed_today(tmp_path):
    kept(
        tmp_path, "dafl_s0", seed=0, metrics={"test/accuracy": 0.9}, command="kd-lightning experiment=dafl/mnist seed=0"
    )
    rows = """
title: R
today: {experiment=dafl/mnist: problem=mnist method=dafl}
tables: [{title: T, folder: mnist, rows: [{title: A, run: dafl}]}]
"""
    (tmp_path / "rows.yaml").write_text(rows)
    page = results_page(tmp_path)
    assert "`kd-lightning problem=mnist method=dafl seed=0`" in page
    assert "experiment=" not in page


def test_a_whole_command_may_be_typed_otherwise_today(tmp_path):
    kept(tmp_path, "dafl_s0", seed=0, metrics={"test/accuracy": 0.9}, command="kd-lightning -m seed=0,1")
    rows = """
title: R
today: {"kd-lightning -m seed=0,1": "kd-lightning -m problem=digits seed=0,1"}
tables: [{title: T, folder: mnist, rows: [{title: A, run: dafl}]}]
"""
    (tmp_path / "rows.yaml").write_text(rows)
    assert "`kd-lightning -m problem=digits seed=0,1`" in results_page(tmp_path)


def test_a_row_has_mean_spread_n_the_papers_number_and_its_note(tmp_path):
    page = results_page(folder_of(tmp_path, dafl=[(0.90, 0.50), (0.92, 0.50), (0.97, 0.53)]))
    assert cells(page, "method") == ["method", "paper", "here", "difference (95 % interval)", "note"]
    assert cells(page, "DAFL") == [
        "DAFL",
        "–",
        "0.9300 ± 0.0361 (n 3)",
        "+0.4200 (+0.3703 to +0.4697) vs noise, n 3: better",
        "1",
    ]
    assert cells(page, "noise") == ["noise", "0.5000", "0.5100 ± 0.0173 (n 3)", "–", "1"]
    assert "seeds 0, 1, 2; DAFL: 0.9000, 0.9200, 0.9700; noise: 0.5000, 0.5000, 0.5300" in page


def test_a_difference_says_better_or_worse_only_beyond_chance_and_nothing_of_one_seed(tmp_path):
    def said(rows=ROWS, **values):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        return cells(results_page(folder_of(folder, rows, **values)), "DAFL")[3]

    level = [(0.90, 0.50), (0.40, 0.50), (0.97, 0.53)]
    assert said(dafl=level).endswith("n 3: not shown")
    assert said(dafl=[(0.9, 0.5)]) == "+0.4000 vs noise, one seed"
    fewer = ROWS.replace("head: method", "less_is_better: true")
    assert said(fewer, dafl=[(0.90, 0.50), (0.92, 0.50)]).endswith("worse")


def test_means_without_their_runs_are_compared_without_an_interval(tmp_path):
    for name, accuracy in (("dafl", 0.9), ("kd", 0.8)):
        kept(tmp_path, f"{name}_mean", seed=None, n=3, metrics={"test/accuracy": accuracy}, std={"test/accuracy": 0.01})
    rows = ROWS.replace("run: dafl, metric: noise/accuracy", "run: kd")
    page = results_page(folder_of(tmp_path, rows))
    assert cells(page, "DAFL")[2:4] == ["0.9000 ± 0.0100 (n 3)", "+0.1000 vs noise, means only"]


def test_a_new_record_is_in_the_page_without_further_work(tmp_path):
    folder = folder_of(tmp_path / "results", dafl=[(0.9, 0.5)])
    run = run_at(tmp_path / "run", ["method=dafl", "seed=1"], 0.8, seed=1, device="cpu x2", precision="32-true")
    assert main([str(run), "--record", str(folder / "mnist")]) == 0
    page = results_page(folder)
    assert cells(page, "DAFL")[2] == "0.8500 ± 0.0707 (n 2)"
    assert "- **2** `kd-lightning method=dafl seed=1`; seed 1" in page
    assert "cpu, 2 threads, fp32" in page


def test_columns_that_nobody_fills_make_room_for_the_teacher(tmp_path):
    rows = ROWS.split("      - {title: DAFL")[0] + "      - {title: DAFL, run: dafl, published: 0.98 elsewhere}\n"
    kept(tmp_path, metrics={"test/accuracy": 0.5, "teacher/accuracy": 0.99, "noise/accuracy": 0.1})
    page = results_page(folder_of(tmp_path, rows))
    assert cells(page, "method") == ["method", "teacher", "here", "note"]
    assert cells(page, "DAFL") == ["DAFL", "0.9900", "0.5000 (n 1)", "1"]
    assert "seed 0: 0.5000; noise 0.1000; recorded" in page
    assert "- DAFL, published: 0.98 elsewhere" in page


def test_notes_are_shared_by_runs_that_differ_in_their_seeds_only(tmp_path):
    for seed, note in ((0, "busy"), (1, "busy"), (2, "idle")):
        spent = {"updates": 100 + seed, "queries": 5, "seconds": {"student": 1234.5, "total": 2000}}
        command = f"kd-lightning seed={seed} teacher.seed=0"
        kept(tmp_path, f"dafl_s{seed}", seed=seed, note=note, command=command, **spent)
    page = results_page(folder_of(tmp_path, ROWS.replace(", against: noise", "").split("      - {title: noise")[0]))
    assert cells(page, "DAFL")[-1] == "1, 2"
    assert (
        "- **1** `kd-lightning seed=N teacher.seed=0`; seeds 0, 1: 0.5000, 0.5000; 100 to 101 updates; 5 queries; "
        "1,234 s for the student; busy; recorded"
    ) in page
    assert "- **2** `kd-lightning seed=2 teacher.seed=0`; seed 2: 0.5000; 102 updates; " in page


def test_a_table_of_measures_has_a_column_for_each(tmp_path):
    rows = """
title: Results
tables:
  - title: Table
    folder: mnist
    head: setting
    average: over all
    columns:
      - {title: DAFL, run: dafl, digits: 2}
      - {title: KD, run: kd, over: noise/accuracy}
    rows:
      - {title: tuned, run: "*_tuned"}
      - {title: untuned, run: "*_untuned", seed: 1}
"""
    two = [(0.5, 0.25), (0.7, 0.5)]
    page = results_page(
        folder_of(tmp_path, rows, dafl_tuned=two[:1], dafl_untuned=two, kd_tuned=two[:1], kd_untuned=two)
    )
    assert cells(page, "tuned") == ["tuned", "0.50", "0.5000 (2.000)"]
    assert cells(page, "untuned") == ["untuned", "0.70", "0.7000 (1.400)"]
    assert cells(page, "over all") == ["over all", "0.60 ± 0.14", "0.6000 ± 0.1414"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("run: dafl, against", "run: dfad, against", r"table Table: no record mnist/dfad_s\*\.json or dfad_mean\.json"),
        ("against: noise", "against: KD", "row DAFL: against: KD is no row of the table; rows: DAFL, noise"),
        ("against: noise", "versus: noise", "row DAFL: unknown key versus; known: "),
        ("folder: mnist", "", "table Table: folder is missing"),
        ("rows:", "rows: [", "rows.yaml cannot be read"),
        ("head: method", "columns: [{title: a}, {title: b}, {title: c}, {title: d}, {title: e}]", "6 columns"),
        ("title: Results", "", "page: title is missing"),
    ],
)
def test_what_is_wrong_with_rows_yaml_is_one_line(tmp_path, old, new, complaint):
    folder = folder_of(tmp_path, ROWS.replace(old, new, 1), dafl=[(0.9, 0.5)])
    with pytest.raises(UserError, match=complaint) as error:
        results_page(folder)
    assert "\n" not in str(error.value)
    assert str(folder / "rows.yaml") in str(error.value)


def test_a_record_that_no_row_shows_is_named(tmp_path):
    folder = folder_of(tmp_path, dafl=[(0.9, 0.5)], kd=[(0.9, 0.5)])
    with pytest.raises(UserError, match="has no row for the records mnist/kd"):
        results_page(folder)


def test_a_number_that_is_edited_in_a_record_changes_the_page(tmp_path):
    folder = folder_of(tmp_path, dafl=[(0.9, 0.5)])
    before = results_page(folder)
    path = folder / "mnist" / "dafl_s0.json"
    path.write_text(path.read_text().replace("0.9", "0.91"))
    assert json.loads(path.read_text())["metrics"]["test/accuracy"] == 0.91
    assert results_page(folder) != before
