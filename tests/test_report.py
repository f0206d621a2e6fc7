import csv
import io
import json
import math
import os
import statistics
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from kd_lightning.cli.report import main
from kd_lightning.cli.summary import summary
from kd_lightning.errors import UserError
from kd_lightning.results.run_lock import is_running, running
from kd_lightning.results.table import Stat, collect, fold, headline, render, write_table


def run_at(folder, overrides, accuracy=0.9, *, status="ok", seed=0, defaults=None, choices=None, **more):
    (folder / ".hydra").mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(list(overrides)), folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(OmegaConf.create(defaults or {}), folder / ".hydra" / "config.yaml")
    hydra = {"hydra": {"runtime": {"choices": choices or {}}}}
    OmegaConf.save(OmegaConf.create(hydra), folder / ".hydra" / "hydra.yaml")
    result = {
        "format_version": 1,
        "status": status,
        "reason": None if status == "ok" else "the loss is NaN",
        "system": "dafl",
        "method": "dafl",
        "data": "mnist",
        "seed": seed,
        "metrics": {"test/accuracy": accuracy, "test/agreement": None, "teacher/accuracy": 0.99},
        "cost": {"seconds": {"total": 10.0 + seed}, "queries": 0},
    }
    (folder / "result.json").write_text(json.dumps(result | more))
    return folder


def cell(table, row, header):
    return table.rows[row][table.headers.index(header)]


def test_seeds_fold_into_mean_sample_std_and_n(tmp_path):
    for seed, accuracy in enumerate([0.90, 0.92, 0.97]):
        run_at(tmp_path / f"{seed}", [f"seed={seed}", "lr=0.1"], accuracy, seed=seed)
    table = fold(collect([tmp_path]))
    assert len(table.rows) == 1
    stat = cell(table, 0, "accuracy")
    assert stat.n == cell(table, 0, "n") == 3
    assert math.isclose(stat.std, math.sqrt((0.03**2 + 0.01**2 + 0.04**2) / 2))
    assert "0.9300 ± 0.0361" in render(table)
    assert cell(table, 0, "seconds") == 11.0
    assert "seed (0, 1, 2)" in " ".join(table.notes)


def test_a_bool_is_one_setting_however_it_is_spelled(tmp_path):
    for seed, said in enumerate(["mix=True", "mix=true"]):
        run_at(tmp_path / f"{seed}", [said], seed=seed)
    run_at(tmp_path / "default", [], seed=2, defaults={"mix": True})
    assert [cell(fold(collect([tmp_path])), 0, "n")] == [3]


def test_one_seed_prints_its_value_alone_with_n_1(tmp_path):
    table = fold(collect([run_at(tmp_path / "run", ["lr=0.1"], 0.9712)]))
    assert cell(table, 0, "n") == 1
    assert "0.9712" in render(table)
    assert "±" not in render(table)


def test_columns_are_the_settings_that_vary(tmp_path):
    same = ["data=mnist", "hydra.verbose=true", "hydra/launcher=slots"]
    for i, lr in enumerate((0.1, 0.2)):
        run_at(tmp_path / f"{i}", [*same, "lr=9", f"lr={lr}", f"artifacts.root=/tmp/{i}", f"seed={i}"], seed=i)
    table = fold(collect([tmp_path]))
    assert table.headers[:2] == ["lr", "n"]
    assert [row[0] for row in table.rows] == ["0.1", "0.2"]


def test_a_setting_left_at_its_default_equals_the_same_setting_named(tmp_path):
    run_at(tmp_path / "0", ["method=dafl", "lr=1e-1"], seed=0)
    run_at(tmp_path / "1", [], seed=1, defaults={"lr": 0.1}, choices={"method": "dafl"})
    run_at(tmp_path / "2", [], seed=2, defaults={"lr": 0.2}, choices={"method": "dafl"})
    table = fold(collect([tmp_path]))
    assert table.headers[0] == "lr"
    assert [(row[0], cell(table, i, "n")) for i, row in enumerate(table.rows)] == [("0.1", 2), ("0.2", 1)]


def test_teacher_and_source_seeds_are_folded_and_named(tmp_path):
    run_at(tmp_path / "0", ["seed=0", "teacher.seed=0", "source.seed=4"])
    run_at(tmp_path / "1", ["seed=0", "teacher.seed=1", "source.seed=4"])
    table = fold(collect([tmp_path]))
    assert cell(table, 0, "n") == 2
    (note,) = table.notes
    assert "teacher.seed (0, 1)" in note
    assert "source.seed" not in note


def test_copies_of_a_seed_do_not_raise_n(tmp_path):
    for name, accuracy in (("new", 0.91), ("old", 0.90)):
        run_at(tmp_path / name, ["seed=3"], accuracy, seed=3)
    os.utime(tmp_path / "old" / "result.json", (1, 1))
    table = fold(collect([tmp_path]))
    assert cell(table, 0, "accuracy") == Stat(0.91, None, 1)
    assert any("1 repeated" in note for note in table.notes)


def test_failed_runs_are_counted_and_explained(tmp_path):
    run_at(tmp_path / "0", ["seed=0"], seed=0)
    assert "failed" not in fold(collect([tmp_path])).headers
    run_at(tmp_path / "1", ["seed=1"], seed=1, status="failed")
    killed = run_at(tmp_path / "2", ["seed=2"], seed=2)
    (killed / "result.json").unlink()
    (killed / "console.log").write_text("step 3\nkilled by SIGKILL\n\n")
    table = fold(collect([tmp_path]))
    assert (cell(table, 0, "n"), cell(table, 0, "failed")) == (1, 2)
    assert f"failed: {tmp_path / '1'}: the loss is NaN" in table.notes
    assert f"failed: {killed}: killed by SIGKILL" in table.notes


HOLDS = """
import sys, time
from pathlib import Path
from kd_lightning.results.run_lock import running

with running(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("result_of_before", [False, True])
def test_a_run_is_running_as_long_as_its_process_lives(tmp_path, result_of_before, capsys):
    run_at(tmp_path / "0", ["seed=0"], seed=0)
    folder = run_at(tmp_path / "1", ["seed=1"], seed=1, status="failed")
    if not result_of_before:
        (folder / "result.json").unlink()
    with subprocess.Popen([sys.executable, "-c", HOLDS, folder], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            for _ in range(2):  # looking changes nothing
                table = fold(collect([tmp_path]))
                assert f"running: {folder}" in table.notes
                assert "failed" not in table.headers
                assert len(table.rows) == 1
            assert main([str(folder)]) == 0
            assert f"running: {folder}" in capsys.readouterr().out
            with running(folder):
                pass  # somebody else's mark stays
            assert is_running(folder)
        finally:
            process.kill()
    table = fold(collect([tmp_path]))
    reason = "the loss is NaN" if result_of_before else "no result.json: it was killed"
    assert f"failed: {folder}: {reason}" in table.notes
    with running(folder):
        assert is_running(folder)
    assert not (folder / ".running").exists()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('{"format_version": 1, "sta', "half-written"),
        ('{"format_version": 7, "status": "ok"}', "format_version 7"),
        ('{"answer": 42}', "not a result of kd_lightning"),
        ("[1, 2]", "not a result of kd_lightning"),
    ],
)
def test_a_result_nobody_can_trust_is_one_line_and_the_rest_is_reported(tmp_path, text, complaint):
    run_at(tmp_path / "0", ["seed=0"])
    bad = run_at(tmp_path / "1", ["seed=1"]) / "result.json"
    bad.write_text(text)
    table = fold(collect([tmp_path]))
    (note,) = table.notes
    assert str(bad) in note
    assert complaint in note
    assert [cell(table, 0, "n"), len(table.rows), "failed" in table.headers] == [1, 1, False]


def test_nothing_but_unreadable_results_still_makes_a_table(tmp_path):
    (run_at(tmp_path / "0", []) / "result.json").write_text("{")
    table = write_table(tmp_path)
    assert table.rows == []
    assert "half-written" in (tmp_path / "table.md").read_text()


def test_controls_teacher_and_the_papers_number(tmp_path):
    for seed in range(2):
        metrics = {
            "noise/accuracy": 0.3,
            "scratch/accuracy": 0.98 + seed / 100,
            "scratch/agreement": 0.9,
            "test/accuracy": 0.95,
            "test/agreement": 0.96,
            "teacher/accuracy": 0.99,
            "val/accuracy": 0.5,
        }
        run_at(tmp_path / f"{seed}", [], seed=seed, metrics=metrics, paper={"test/accuracy": 0.982})
    table = fold(collect([tmp_path]))
    shown = ["accuracy", "paper", "agreement", "teacher", "real data", "noise", "seconds"]
    assert table.headers[table.headers.index("n") + 1 :] == shown
    assert cell(table, 0, "paper") == 0.982
    assert cell(table, 0, "teacher") == Stat(0.99, None, 2)
    assert cell(table, 0, "accuracy").std == 0.0
    assert cell(table, 0, "real data").std > 0


def test_teachers_that_vary_keep_their_names_beside_their_accuracy(tmp_path):
    for name in ("small_conv", "resnet8"):
        run_at(tmp_path / name, [f"teacher={name}"])
    table = fold(collect([tmp_path]))
    assert {cell(table, row, "teacher") for row in (0, 1)} == {"small_conv", "resnet8"}
    assert cell(table, 0, "teacher accuracy").mean == 0.99


def test_another_metric_names_its_own_column(tmp_path):
    run_at(tmp_path / "0", [], metrics={"test/mae": 4.25, "teacher/mae": 3.5})
    table = fold(collect([tmp_path]))
    assert cell(table, 0, "mae").mean == 4.25
    assert cell(table, 0, "teacher").mean == 3.5


def test_a_metric_that_some_runs_lack_says_its_own_n(tmp_path):
    run_at(tmp_path / "0", [], seed=0, metrics={"test/accuracy": 0.9, "test/agreement": 0.8})
    run_at(tmp_path / "1", [], seed=1, metrics={"test/accuracy": 0.9, "test/agreement": None})
    run_at(tmp_path / "2", [], seed=2, metrics=None)
    text = render(fold(collect([tmp_path])))
    assert "0.9000 ± 0.0000 (n 2)" in text
    assert "0.8000 (n 1)" in text


def test_markdown_and_csv(tmp_path):
    values = [0.123456789, 0.2]
    for seed, value in enumerate(values):
        run_at(tmp_path / f"{seed}", ["name=a|b"], value, seed=seed)
        run_at(tmp_path / f"x{seed}", ["name=c"], value, seed=seed)
    table = fold(collect([tmp_path]))
    assert "a\\|b" in render(table, "markdown")
    rows = list(csv.DictReader(io.StringIO(render(table, "csv"))))
    assert [row["name"] for row in rows] == ["a|b", "c"]
    assert float(rows[0]["accuracy"]) == statistics.fmean(values)
    assert float(rows[0]["accuracy std"]) == statistics.stdev(values)


def test_jobs_sort_as_numbers_and_a_folder_given_twice_counts_once(tmp_path):
    for i in (10, 9, 1):
        run_at(tmp_path / f"{i}", [])
    names = [run.folder.name for run in collect([tmp_path, tmp_path / "9", tmp_path])]
    assert names == ["1", "9", "10"]


def test_write_table_leaves_running_jobs_out(tmp_path):
    run_at(tmp_path / "0", ["seed=0"])
    (run_at(tmp_path / "1", ["seed=1"]) / "result.json").unlink()
    assert "failed" in write_table(tmp_path).headers
    table = write_table(tmp_path, running=[tmp_path / "1"])
    assert "failed" not in table.headers
    assert (tmp_path / "table.md").read_text() == render(table, "markdown")
    assert (tmp_path / "table.csv").read_text() == render(table, "csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "table.csv", "table.md"]


def test_the_command_ends_with_2_and_one_line_for_a_wrong_path(tmp_path, capsys):
    for path in (tmp_path / "nowhere", tmp_path):
        assert main([str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert str(path) in captured.err
        assert captured.err.count("\n") == 1
    run_at(tmp_path / "0", [])
    assert main([str(tmp_path), "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("| system")


def test_summary_of_one_run():
    result = {
        "format_version": 1,
        "status": "ok",
        "system": "dafl",
        "data": "mnist",
        "seed": 3,
        "metrics": {
            "noise/accuracy": 0.31,
            "scratch/accuracy": 0.985,
            "scratch/agreement": 0.984,
            "test/accuracy": 0.97,
            "test/agreement": 0.975,
            "teacher/accuracy": 0.99,
        },
        "models": {"teacher": {"parameters": 11173962}, "student": {"parameters": 272474}},
        "cost": {"seconds": {"teacher": 5, "student": 12.34}},
    }
    lines = summary(result, ["/run/result.json"]).splitlines()
    body = {line[:18].strip(): line[18:].split() for line in lines if line and line[0] in "trns"}
    assert list(body) == ["teacher", "real data", "noise", "student (this run)"]
    assert body["teacher"] == ["0.9900", "–", "11,173,962", "5.0"]
    assert body["real data"] == ["0.9850", "0.9840", "272,474", "–"]
    assert body["noise"] == ["0.3100", "–", "272,474", "–"]
    assert body["student (this run)"] == ["0.9700", "0.9750", "272,474", "12.3"]
    assert lines[-1] == "wrote /run/result.json"
    failed = summary({"status": "failed", "reason": "NaN", "metrics": None, "system": "kd"})
    assert "failed, NaN" in failed
    assert "teacher" not in failed


def test_headline():
    assert headline({"metrics": {"teacher/mae": 1.0, "test/agreement": 0.5, "test/mae": 4.2}}) == "mae 4.2000"
    assert headline({"metrics": None}) == ""


def test_plot_without_matplotlib_says_what_to_install(tmp_path, capsys, monkeypatch):
    run_at(tmp_path / "0", [])
    for module in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    assert main([str(tmp_path), "--plot", str(tmp_path / "a.png")]) == 2
    assert "kd-lightning[notebook]" in capsys.readouterr().err


def test_plot_writes_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    run_at(tmp_path / "0", [], paper={"test/accuracy": 0.95})
    assert main([str(tmp_path), "--plot", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > image.height


def drawn(folder):
    pytest.importorskip("matplotlib")
    from kd_lightning.results.plot import draw
    from kd_lightning.results.run_index import group

    return draw(group(collect([folder])))


def test_plot_adds_a_panel_for_queries_that_differ(tmp_path):
    for method, queries in {"kd": 0, "supervised": 500}.items():
        for seed in range(2):
            cost = {"seconds": {"total": 3.0}, "queries": queries}
            run_at(tmp_path / method / f"{seed}", [f"method={method}"], 0.9 + seed / 100, seed=seed, cost=cost)
    panels = [axes.get_xlabel() for axes in drawn(tmp_path).axes]
    assert panels == ["accuracy", "total seconds", "queried images"]
    assert len(drawn(tmp_path / "supervised").axes) == 2


def test_plot_shows_controls_beside_the_student(tmp_path):
    for i, (method, value) in enumerate({"kd": 0.9, "dafl": 0.7}.items()):
        metrics = {"teacher/accuracy": 0.95, "noise/accuracy": 0.5, "called/accuracy": value}
        metrics |= {"scratch/accuracy": 0.6} if method == "kd" else {}
        run_at(tmp_path / f"{i}", [f"method={method}"], value, metrics={"test/accuracy": value, **metrics})
    axes = drawn(tmp_path).axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["teacher", "real data", "noise"]
    beside = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert beside["noise"] == [0.5, 0.5]
    at = [label.get_text().partition(" ")[0] for label in axes.get_yticklabels()].index("method=kd")
    assert beside["real data"][at] == 0.6
    assert math.isnan(beside["real data"][1 - at])


def test_the_spread_over_all_other_settings_has_one_row_for_each_value(tmp_path):
    pytest.importorskip("matplotlib")
    from kd_lightning.results.plot import spread
    from kd_lightning.results.run_index import group

    for method, accuracies in {"rdskd": (0.9, 0.92), "dafl": (0.5, 0.9)}.items():
        for i, accuracy in enumerate(accuracies):
            for seed in (0, 1):
                run_at(tmp_path / f"{method}{i}{seed}", [f"method={method}", f"lr={i}"], accuracy, seed=seed)
    groups = group(collect([tmp_path]))
    axes = spread(groups, "method").axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["dafl  (2 settings)", "rdskd  (2 settings)"]
    dots = [sorted(line.get_xdata()) for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[0.5, 0.9], [0.9, 0.92]]
    with pytest.raises(UserError, match="--by colour: does not vary among these runs; what does: method, lr"):
        spread(groups, "colour")


def test_accuracy_over_a_setting_is_a_line_for_each_combination_of_the_others(tmp_path):
    pytest.importorskip("matplotlib")
    from kd_lightning.results.plot import curves
    from kd_lightning.results.run_index import group

    for method in ("kd", "disguide"):
        for budget in (20000, 2000):
            for seed in (0, 1):
                overrides = [f"method={method}", f"teacher.budget={budget}", f"source.mix={method == 'kd'}"]
                accuracy = 0.9 + seed / 50 - 1000 / budget
                run_at(tmp_path / f"{method}{budget}{seed}", overrides, accuracy, seed=seed)
    groups = group(collect([tmp_path]))
    axes = curves(groups, "teacher.budget").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "teacher",
        "disguide, mix=false",
        "kd, mix=true",
    ]
    line = axes.containers[0].lines[0]
    assert list(line.get_xdata()) == [2000, 20000]
    assert list(line.get_ydata()) == pytest.approx([0.41, 0.86])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["2,000", "20,000"]
    with pytest.raises(UserError, match="--over method: disguide is not a number; for names it is --by method"):
        curves(groups, "method")
    with pytest.raises(UserError, match="--over seed: does not vary"):
        curves(groups, "seed")


def test_runs_while_they_learn_are_a_line_each_and_a_colour_for_each_combination(tmp_path):
    pytest.importorskip("matplotlib")
    from kd_lightning.results.plot import learning
    from kd_lightning.results.run_index import group

    for method, asks in (("kd", False), ("disguide", True)):
        for seed in (0, 1):
            run_at(folder := tmp_path / f"{method}{seed}", [f"method={method}"], 0.9, seed=seed)
            rows = [f"{r},{r / 2},{0.3 + r / 100}" + (f",{10 * r}" if asks else "") for r in (10, 20)]
            head = "round,seconds,val/accuracy" + (",queries" if asks else "")
            (folder / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    run_at(tmp_path / "curveless", ["method=dafl"], 0.9)
    groups = group(collect([tmp_path]))
    axes = learning(groups, "seconds").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["disguide", "kd"]
    assert len({line.get_color() for line in axes.lines}) == 2
    assert [list(line.get_xdata()) for line in axes.lines] == [[5, 10]] * 4
    assert [list(line.get_ydata()) for line in axes.lines] == [pytest.approx([0.4, 0.5])] * 4
    assert [list(line.get_xdata()) for line in learning(groups, "queries").axes[0].lines] == [[100, 200]] * 2
    with pytest.raises(
        UserError, match=r"--over seconds: no run drew val/accuracy over it, which takes images held out"
    ):
        learning(group(collect([tmp_path / "curveless"])), "seconds")


@pytest.mark.parametrize("option", ["--by", "--over"])
def test_a_form_of_the_figure_without_a_figure_is_refused(tmp_path, capsys, option):
    run_at(tmp_path / "0", ["method=kd"])
    assert main([str(tmp_path), option, "method"]) == 2
    assert f"{option} method says how the figure is drawn: add --plot FILE.png" in capsys.readouterr().err


def test_nothing_to_plot_is_one_clear_error(tmp_path):
    pytest.importorskip("matplotlib")
    from kd_lightning.results.plot import plot

    with pytest.raises(UserError, match="nothing to plot"):
        plot([], tmp_path / "a.png")


def test_without_real_images_the_agreement_is_labelled_as_one_on_generated_ones() -> None:
    metrics = {"test/accuracy": None, "test/agreement": None, "generated/agreement": 0.875}
    text = summary({"status": "ok", "system": "dafl", "data": "none", "seed": 0, "metrics": metrics})
    assert "generated images, not on real ones: 0.8750" in text
    measured = summary(
        {"status": "ok", "system": "dafl", "data": "x", "seed": 0, "metrics": metrics | {"test/accuracy": 0.5}}
    )
    assert "generated images" not in measured


def test_a_run_that_its_time_ended_is_told_apart(tmp_path):
    ended = {"student": {"by": "max_time", "round": 812, "of": 4000}}
    folder = run_at(tmp_path / "cut", ["seed=0"], ended_by=ended)
    run_at(tmp_path / "whole", ["seed=1"], seed=1, ended_by={})
    table = fold(collect([tmp_path]))
    (note,) = [note for note in table.notes if note.startswith("cut short")]
    assert note == f"cut short: {folder}: student by max_time at round 812 of 4,000"
    assert "cut short: student by max_time" in summary(result_of(folder))
    assert "cut short" not in summary(result_of(tmp_path / "whole"))


def result_of(folder):
    return json.loads((folder / "result.json").read_text())


def test_who_watched_is_no_setting(tmp_path):
    run_at(tmp_path / "a", ["seed=0", "logger=wandb", "logger.wandb.project=mine"])
    run_at(tmp_path / "b", ["seed=1"], seed=1)
    assert cell(fold(collect([tmp_path])), 0, "n") == 2


def of_methods(tmp_path):
    for i, (method, lr, seed, accuracy) in enumerate(
        [
            ("kd", 0.1, 0, 0.90),
            ("kd", 0.1, 1, 0.92),
            ("bss", 0.1, 0, 0.93),
            ("bss", 0.1, 1, 0.97),
            ("bss", 0.1, 2, 0.50),
            ("bss", 0.2, 0, 0.80),
        ]
    ):
        run_at(tmp_path / f"{i}", [f"method={method}", f"lr={lr}", f"seed={seed}"], accuracy, seed=seed)
    return collect([tmp_path])


def test_differences_to_a_method_are_paired_by_seed_among_equal_settings(tmp_path):
    table = fold(of_methods(tmp_path), against="kd")
    found = [(row[0], row[1], cell(table, i, "accuracy − kd")) for i, row in enumerate(table.rows)]
    assert found[0] == ("kd", "0.1", None)
    assert found[2] == ("bss", "0.2", None), "kd has no run at this learning rate"
    difference = found[1][2]
    assert difference.n == 2
    assert math.isclose(difference.mean, (0.03 + 0.05) / 2)
    half = 12.706204736 * 0.01  # t of one degree of freedom, times the standard error
    assert math.isclose(difference.low, 0.04 - half)
    assert math.isclose(difference.high, 0.04 + half)
    assert "+0.0400 (-0.0871 to +0.1671) (n 2)" in render(table)
    assert "interval" not in render(fold(collect([tmp_path])))


def test_differences_have_their_interval_in_csv(tmp_path):
    rows = list(csv.DictReader(io.StringIO(render(fold(of_methods(tmp_path), against="kd"), "csv"))))
    assert float(rows[1]["accuracy − kd"]) == pytest.approx(0.04)
    assert float(rows[1]["accuracy − kd low"]) == pytest.approx(0.04 - 0.12706204736)
    assert float(rows[1]["accuracy − kd high"]) == pytest.approx(0.04 + 0.12706204736)
    assert rows[0]["accuracy − kd low"] == ""


def test_a_method_that_nobody_ran_is_refused_by_name(tmp_path, capsys):
    of_methods(tmp_path)
    assert main([str(tmp_path), "--against", "dafl"]) == 2
    assert "--against dafl: no finished run has this method; these have: kd, bss" in capsys.readouterr().err
