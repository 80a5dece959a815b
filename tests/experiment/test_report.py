import itertools
import json
import math
import re
import statistics
import struct
import subprocess

import numpy as np
import pytest
import scipy.integrate
from hypothesis import given
from hypothesis import strategies as st

from fda_jax import doctor, export, report, summary
from fda_jax.experiment import (
    comparison,
    comparison_table,
    environment,
    pairs,
    paper_figures,
    sweep_figures,
    tables,
)
from tests.conftest import small_config

ACCURACIES = (0.25, 0.75, 0.5)  # of three epochs: the best is not the last
LOSSES = (2.0, 1.5, 1.25)
COLUMNS = tables.columns("test")
REVISION = "0123456789abcdef0123456789abcdef01234567"


def make_run(
    path,
    *,
    network="resnet20",
    method="fda",
    seed=0,
    epochs=3,
    accuracies=ACCURACIES,
    finished=True,
    failed_after=None,
    dirty=False,
    changes=None,
    flips=(),
    seconds=3.0,
    device="cpu",
    budget=1.0,
    revision=REVISION,
    test_examples=10_000,
    together=None,
    timed_steps=None,
    top5=None,
    holdout=0,
    **knobs,
):
    """A run folder, written by hand as training writes it."""
    path.mkdir(parents=True)
    config = {
        "seed": seed,
        "model": {"name": network, "dtype": "float32"},
        "method": {"name": method, "window": 1.0, **knobs},
        "data": {
            "name": "cifar10",
            "dir": f"somewhere/{path.name}",
            "num_threads": 8,
            **({"holdout": holdout} if holdout else {}),
        },
        "train": {"epochs": epochs, "budget": budget, "batch_size": 128},
    }
    environment = {
        "command": ["/there/train.py", "--config=configs/c.py:fda", f"--workdir={path}"],
        "device": device,
        "devices": 1,
        "revision": revision,
        "dirty": dirty,
        "changes": changes,
        "packages": {"fda_jax": "0.1.0"},
        **({} if together is None else {"together": together}),
    }
    rows = []
    split = "holdout" if holdout else "test"
    for epoch, (accuracy, loss) in enumerate(zip(accuracies, LOSSES, strict=False), start=1):
        shared = {"step": 10 * epoch, "epoch": epoch}
        rate = {"seconds": 1.0 * epoch, "images_per_second": 1234.0}
        counted = {"flips": flips[epoch - 1]} if flips else {}
        rows.append(
            {**shared, "split": "train", "loss": loss, "accuracy": 0.125, **counted, **rate}
        )
        rows.append({**shared, "split": split, "loss": 9.0, "accuracy": accuracy})
    (path / "config.json").write_text(json.dumps(config))
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if failed_after is not None:
        failure = {"step": failed_after, "message": "the loss is not finite"}
        (path / "failure.json").write_text(json.dumps(failure))
    if finished:
        result = {
            "config": config,
            f"last_{split}_accuracy": accuracies[-1],
            f"best_{split}_accuracy": max(accuracies),
            **({} if top5 is None else {f"last_{split}_top5_accuracy": top5}),
            "best_epoch": accuracies.index(max(accuracies)) + 1,
            f"{split}_examples": holdout or test_examples,
            "epochs": len(accuracies),
            "images_per_second": 1234.0,
            "seconds": seconds,
            "steps": 10 * len(accuracies),
            **({} if timed_steps is None else {"timed_steps": timed_steps}),
        }
        (path / "result.json").write_text(json.dumps(result))
    return path


def sections(text, columns=COLUMNS):
    """Heading -> the rows of its table as lists of cells, without the table's own heading."""
    found = {}
    for part in text.split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in lines
            if line.startswith("| ")
        ]
        assert rows[0] == list(columns)
        found[heading] = rows[2:]
    return found


def render(*folders):
    return tables.markdown(tables.group_runs(tables.read_runs(folders)))


def only_row(*folders):
    (rows,) = sections(render(*folders)).values()
    (row,) = rows
    return dict(zip(COLUMNS, row, strict=True))


def size_px(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_a_row_holds_the_numbers_of_the_files(tmp_path):
    row = only_row(make_run(tmp_path / "a", seed=7))
    assert row == {
        "run": "a",
        "method": "fda",
        "seed": "7",
        "epochs": "3/3",
        "last test accuracy (%)": "50.00",
        "best test accuracy (%)": "75.00 (epoch 2)",
        "last train loss": "1.2500",
        "images/s": "1,234",
        "device": "cpu",
        "revision": "01234567",
    }


def test_runs_that_shared_a_program_are_marked(tmp_path):
    assert only_row(make_run(tmp_path / "a", together=5))["device"] == "cpu (5 runs together)"
    assert only_row(make_run(tmp_path / "b", together=1))["device"] == "cpu"


def test_a_changed_checkout_is_marked(tmp_path):
    assert only_row(make_run(tmp_path / "a", dirty=True))["revision"] == "01234567+changes"
    run = make_run(tmp_path / "b", dirty=True, changes="3fa2c1")
    assert only_row(run)["revision"] == "01234567+3fa2c1"


def test_a_package_without_a_checkout_is_known_by_its_version(tmp_path):
    assert only_row(make_run(tmp_path / "a", revision=None))["revision"] == "fda_jax 0.1.0"


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", folder, *who, *words], check=True, capture_output=True)


def test_changes_of_the_package_are_told_apart_and_no_other_checkout_is_taken_for_its(tmp_path):
    package = tmp_path / "fda_jax"
    inner = tmp_path / ".venv" / "site-packages"
    for folder in (package, inner):
        folder.mkdir(parents=True)
    code, notes, new = package / "code.py", tmp_path / "notes.md", package / "new.py"
    code.write_text("1")
    notes.write_text("1")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "fda_jax", "notes.md")
    git(tmp_path, "commit", "-qm", "one")

    def look():
        found = environment.checkout(tmp_path)
        return found["dirty"], found["changes"]

    assert look() == (False, None)
    assert environment.checkout(inner) == {"revision": None, "dirty": None, "changes": None}
    notes.write_text("2")
    assert look() == (True, None)
    seen = [look()]
    for change in (
        lambda: code.write_text("2"),
        lambda: code.write_text("3"),
        lambda: new.write_text("3"),
        lambda: code.unlink(),
    ):
        change()
        seen.append(look())
    assert len({*seen}) == 5
    assert all(dirty and re.fullmatch("[0-9a-f]{6}", changes) for dirty, changes in seen[1:])
    new.unlink()
    code.write_text("2")
    assert look() == seen[1]


def test_an_unfinished_run_is_shown_as_such(tmp_path):
    row = only_row(make_run(tmp_path / "a", epochs=5, finished=False))
    assert row["epochs"] == "3/5, unfinished"
    assert row["last test accuracy (%)"] == "50.00"
    assert row["best test accuracy (%)"] == "75.00 (epoch 2)"


def test_a_run_that_failed_says_so_and_why(tmp_path):
    failed = {"epochs": 5, "finished": False, "failed_after": 30}
    row = only_row(make_run(tmp_path / "runs" / "a", seed=1, **failed))
    assert row["epochs"] == "3/5, failed: not finite at step 31"
    assert "did not fail" in render(tmp_path / "runs")
    make_run(tmp_path / "runs" / "b", seed=2, epochs=5, finished=False)
    make_run(tmp_path / "runs" / "c", seed=3, epochs=5)
    *_, row = next(iter(sections(render(tmp_path / "runs")).values()))
    assert row[0] == "mean over 1 seed (1 failed and 1 unfinished left out)"


@pytest.mark.parametrize("past", [{"failed_after": 29}, {"failed_after": 30, "finished": True}])
def test_a_failure_that_a_later_attempt_came_past_is_none(tmp_path, past):
    run = make_run(tmp_path / "a", **{"finished": False, **past})
    assert "failed" not in render(run)


def test_a_run_that_has_just_begun_is_shown_without_numbers(tmp_path):
    run = make_run(tmp_path / "a", accuracies=(), finished=False)
    (run / "metrics.jsonl").unlink()
    row = only_row(run)
    assert row["epochs"] == "0/3, unfinished"
    assert row["last test accuracy (%)"] == row["last train loss"] == row["images/s"] == "-"
    assert report.main([str(run)]) == 0


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path):
    run = make_run(tmp_path / "a", finished=False)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "epoch": 4, "split": "te')
    assert only_row(run)["epochs"] == "3/3, unfinished"


def test_plain_and_bireal_networks_never_share_a_table(tmp_path):
    make_run(tmp_path / "a", network="resnet20")
    make_run(tmp_path / "b", network="resnet20_bireal")
    found = sections(render(tmp_path))
    assert {heading: [row[0] for row in rows] for heading, rows in found.items()} == {
        "resnet20 on cifar10": ["a"],
        "resnet20_bireal on cifar10": ["b"],
    }


def test_a_method_shows_the_knobs_that_differ_and_no_others(tmp_path):
    make_run(tmp_path / "a", noise="forward", omega=0.1)
    make_run(tmp_path / "b", noise="none", omega=0.1)
    make_run(tmp_path / "c", method="ste")
    (rows,) = sections(render(tmp_path)).values()
    assert [row[1] for row in rows] == ["fda, noise=forward", "fda, noise=none", "ste"]


def test_runs_of_other_lengths_are_named_apart_and_have_no_mean_in_common(tmp_path):
    for name, seed, epochs in (("a", 0, 3), ("b", 1, 3), ("c", 2, 6)):
        make_run(tmp_path / name, seed=seed, epochs=epochs)
    (rows,) = sections(render(tmp_path)).values()
    short, long = "fda, train.epochs=3", "fda, train.epochs=6"
    assert [row[1] for row in rows] == [short, short, short, long]
    assert rows[2][0] == "mean ± std over 2 seeds"


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_mean_and_standard_deviation_over_seeds_are_those_of_statistics(tmp_path, num_seeds):
    last = [0.8123, 0.8291, 0.8044][:num_seeds]
    for seed, accuracy in enumerate(last):
        make_run(tmp_path / f"s{seed}", seed=seed, accuracies=(0.9 + accuracy / 100, accuracy))
    *_, row = next(iter(sections(render(tmp_path)).values()))
    best = [0.9 + accuracy / 100 for accuracy in last]
    assert row[0] == f"mean ± std over {num_seeds} seeds"
    for cell, values in ((row[4], last), (row[5], best)):
        mean, std = map(float, cell.split(" ± "))
        assert mean == pytest.approx(100 * statistics.mean(values), abs=0.00501)
        assert std == pytest.approx(100 * statistics.stdev(values), abs=0.00501)


def test_top5_accuracies_stand_beside_the_last_ones_where_they_were_counted(tmp_path):
    for seed, top5 in enumerate((0.75, 0.85)):
        make_run(tmp_path / f"s{seed}", seed=seed, top5=top5)

    def cells() -> list[str]:
        return [row[4] for row in next(iter(sections(render(tmp_path)).values()))]

    known = ["50.00 (top 5: 75.00)", "50.00 (top 5: 85.00)"]
    assert cells() == [*known, "50.00 ± 0.00 (top 5: 80.00 ± 7.07)"]
    make_run(tmp_path / "older", seed=2)  # which did not count them
    assert cells() == [*known, "50.00", "50.00 ± 0.00"]


def test_one_seed_has_a_mean_row_of_neither_kind(tmp_path):
    make_run(tmp_path / "a", seed=0, omega=0.1)
    make_run(tmp_path / "b", seed=1, omega=0.2)  # another configuration
    assert "mean" not in str(sections(render(tmp_path)))


def test_one_finished_seed_gives_a_mean_without_a_deviation(tmp_path):
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1, finished=False)
    *_, row = next(iter(sections(render(tmp_path)).values()))
    assert row[0] == "mean over 1 seed (1 unfinished left out)"
    assert row[4] == "50.00"


def test_a_seed_that_ran_twice_is_not_counted_as_two_seeds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make_run(tmp_path / name, seed=seed)
    assert "mean ± std over 3 runs of 2 seeds" in render(tmp_path)


def test_the_command_of_each_run_is_given_without_the_places_of_a_machine(tmp_path):
    text = render(make_run(tmp_path / "a"))
    assert "# a\npython train.py --config=configs/c.py:fda --workdir=a\n" in text
    assert str(tmp_path) not in text


def test_a_run_that_is_named_twice_is_read_once_and_names_stay_unique(tmp_path):
    make_run(tmp_path / "x" / "run")
    make_run(tmp_path / "y" / "run")
    runs = tables.read_runs([tmp_path, tmp_path / "x"])
    assert [run.name for run in runs] == ["x/run", "y/run"]


def test_links_are_followed_by_their_names_and_never_in_a_circle(tmp_path):
    make_run(tmp_path / "far" / "run")
    make_run(tmp_path / "runs" / "near")
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "runs")
    (tmp_path / "runs" / "b").symlink_to("near")
    (tmp_path / "runs" / "c").symlink_to(tmp_path / "far" / "run")
    assert [run.name for run in tables.read_runs([tmp_path / "runs"])] == ["c", "near"]
    folder = make_sweep(tmp_path / "w", {"a": []})
    (folder / "a").mkdir()
    (folder / "a" / "seed0").symlink_to(tmp_path / "far" / "run")
    (field,) = comparison.read(folder).fields
    assert [run.name for run in field.entries[0].runs] == ["a/seed0"]


def test_the_command_line_writes_a_table_and_curves_of_1200_pixels(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / "runs" / f"plain{seed}", seed=seed)
    make_run(tmp_path / "runs" / "bireal", network="resnet20_bireal")
    out = tmp_path / "new" / "out"
    assert report.main([str(tmp_path / "runs"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    written = (out / "report.md").read_text(encoding="utf-8")
    assert sections(written) == sections(printed)
    assert str(out / "report.md") in printed
    assert str(out / "curves.png") in printed
    width, height = size_px(out / "curves.png")
    assert width == 1200
    assert height > 800  # two rows of panels
    assert "(curves.png)" in written


def test_a_tilde_that_the_shell_left_is_the_home_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "a")
    assert report.main(["~/a", "--out=~/b"]) == 0
    assert (tmp_path / "b" / "report.md").is_file()
    for program, words in ((doctor, ()), (summary, ()), (export, ("--out=~/n.npz",))):
        assert program.main(["~/no", *words]) == 1
        assert f"{tmp_path}/no holds no run" in capsys.readouterr().err


def test_the_report_goes_into_the_first_folder_if_none_is_named(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert report.main([str(first), str(second)]) == 0
    assert {path.name for path in first.iterdir()} >= {"report.md", "curves.png"}
    assert not (second / "report.md").exists()


def remove_folder(run):
    return run / "missing"


def empty_folder(run):
    (run.parent / "empty").mkdir()
    return run.parent / "empty"


def lose_config(run):
    (run / "config.json").unlink()
    return run


def cut_config(run):
    (run / "config.json").write_text('{"seed": ')
    return run


def lose_key(run):
    (run / "config.json").write_text('{"seed": 0}')
    return run


def spoil_metrics(run):
    (run / "metrics.jsonl").write_text('nonsense\n{"split": "train"}\n')
    return run


def spoil_result(run):
    (run / "result.json").write_text("{}")
    return run


@pytest.mark.parametrize(
    "damage",
    [
        remove_folder,
        empty_folder,
        lose_config,
        cut_config,
        lose_key,
        spoil_metrics,
        spoil_result,
    ],
)
def test_a_missing_or_damaged_folder_is_named_with_a_remedy(tmp_path, capsys, damage):
    folder = damage(make_run(tmp_path / "run"))
    assert report.main([str(folder)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(folder) in captured.err
    assert re.search("give|restore", captured.err)
    assert not (folder / "report.md").exists()


def test_a_place_that_cannot_be_written_is_named_with_a_remedy(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    assert report.main([str(run), "--out", str(tmp_path / "file")]) == 1
    assert f"written to {tmp_path / 'file'}" in (error := capsys.readouterr().err)
    assert "--out" in error


def make_sweep(path, runs, **record):
    """A sweep's folder: name -> the arguments of `make_run` for each of its seeds."""
    for name, seeds in runs.items():
        for seed, arguments in enumerate(seeds):
            make_run(path / name / f"seed{seed}", seed=seed, **arguments)
    whole = {"sweep": "little", "question": "Which?", "overrides": {}, "runs": dict(runs), **record}
    path.mkdir(exist_ok=True)
    (path / "sweep.json").write_text(json.dumps(whole))
    return path


def markdown(folder):
    return comparison_table.markdown(comparison.read(folder))


def compared(folder):
    """Heading -> name of a run -> its row by column, in order."""
    found = {}
    for part in markdown(folder).split("\n## ")[1:]:
        heading, *lines = part.splitlines()
        header, _, *rows = [
            [cell.strip() for cell in line.strip("|").split(" | ")]
            for line in lines
            if line.startswith("| ")
        ]
        found[heading] = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    return found


def test_a_sweep_is_one_table_with_the_most_accurate_run_first(tmp_path):
    runs = {
        "b": [{"accuracies": (0.1, 0.2, 0.3), "flips": (0.5, 0.25, 0.125), "seconds": 6.0}],
        "ste": [{"method": "ste", "accuracies": (0.1, 0.5, 0.4), "seconds": 4.0}],
        "c": [{"accuracies": (), "finished": False}],
        "a": [{"accuracies": (0.3, 0.6), "finished": False}],
        "z": [],
    }
    folder = make_sweep(tmp_path / "w", runs)
    ((heading, rows),) = compared(folder).items()
    assert heading == "resnet20 on cifar10"
    assert list(rows) == ["a", "ste", "b", "c"]
    assert rows["b"] == {
        "run": "b",
        "n": "1",
        "last test accuracy (%)": "30.00",
        "best test accuracy (%)": "30.00",
        "last - ste (points, 95 % interval)": "-10.00",
        "last train loss": "1.2500",
        "flips in the last epoch (%)": "12.500",
        "time a step (ste = 1)": "1.50",
        "images/s": "1,234",
        "time a run": "6s",
        "epochs": "3/3",
    }
    assert list(rows["ste"].values())[2:8] == ["40.00", "50.00", "-", "1.2500", "-", "1.00"]
    assert list(rows["a"].values())[2:8] == ["60.00", "60.00", "-", "1.5000", "-", "-"]
    assert rows["a"]["epochs"] == "2/3, unfinished"
    assert list(rows["c"].values())[2:] == ["-"] * 8 + ["0/3, unfinished"]
    text = markdown(folder)
    assert text.startswith("# Which?\n")
    missing = "3 of 5 runs: c/seed0 (0 of 3 epochs), a/seed0 (2 of 3 epochs), z/seed0."
    assert f"**Missing:** {missing}" in text
    # The standard errors of 30 % and 60 % of 10,000.
    assert "the 10,000 test images alone leave a standard error of 0.46 to 0.49 points" in text
    assert "FDA-BNN" not in text
    # One command made them all.
    assert text.count("python train.py --config=configs/c.py:fda --workdir=seed0") == 1


def test_a_sweep_shows_means_over_finished_seeds(tmp_path):
    seeds = [{"accuracies": (0.5, value), "flips": (0.5, value)} for value in (0.2, 0.4)]
    unfinished = {"accuracies": (0.9,), "finished": False}
    runs = {"a": [*seeds, unfinished]}
    ((row,),) = [rows.values() for rows in compared(make_sweep(tmp_path / "w", runs)).values()]
    assert row["last test accuracy (%)"] == "30.00 ± 14.14"
    assert row["flips in the last epoch (%)"] == "30.000"
    assert row["n"] == "2 (1 unfinished left out)"


def test_a_sweep_names_the_runs_that_failed_and_leaves_them_out_of_the_means(tmp_path):
    failed = {"accuracies": (0.9,), "finished": False, "failed_after": 13}
    begun = {"accuracies": (0.4,), "finished": False}
    runs = {"a": [{}, failed, begun], "b": [failed, begun], "c": [failed]}
    folder = make_sweep(tmp_path / "w", runs, seeds=3, baselines={"b": "a", "c": "a"})
    ((rows),) = compared(folder).values()
    shown = ("n", "last test accuracy (%)", "epochs")
    assert {name: tuple(row[key] for key in shown) for name, row in rows.items()} == {
        "a": ("1 (1 failed and 1 unfinished left out)", "50.00", "3/3"),
        "b": ("1 (1 failed left out)", "40.00", "1/3, unfinished"),
        "c": ("1", "90.00", "1/3, failed"),
    }
    assert "a/seed1 (failed after 1 of 3 epochs: not finite at step 14)" in markdown(folder)
    assert "of those that did not fail" in markdown(folder)
    assert "8 of 9 runs, of which 3 failed." in comparison_table.summary(comparison.read(folder))


def test_a_stage_that_failed_is_named(tmp_path):
    folder = make_run(tmp_path / "a", accuracies=(), epochs=6, finished=False)
    stage = make_run(folder / "stage1", finished=False, failed_after=40)
    whole = {**small_config(**{"train.epochs": 6}), "stages": {"stage1": {"epochs_share": 0.5}}}
    whole["stages"]["stage2"] = {}
    (folder / "config.json").write_text(json.dumps(whole))
    assert only_row(folder)["epochs"] == "3/6, failed: not finite at step 41 of stage1"
    (stage / "failure.json").unlink()
    assert only_row(folder)["epochs"] == "3/6, unfinished"


def test_a_sweep_shows_top5_accuracies_where_they_were_counted(tmp_path):
    runs = {"a": [{"top5": 0.75}, {"top5": 0.85}], "b": [{}]}
    ((_, rows),) = compared(make_sweep(tmp_path / "w", runs)).items()
    assert rows["a"]["last top-5 test accuracy (%)"] == "80.00 ± 7.07"
    assert rows["b"]["last top-5 test accuracy (%)"] == "-"


def test_times_are_compared_on_one_kind_of_device_and_with_the_reference_of_default_knobs(tmp_path):
    runs = {
        "ste_window=2": [{"method": "ste", "seconds": 99.0}],
        "ste": [{"method": "ste", "seconds": 2.0}],
        "same": [{"seconds": 3.0}],
        "other": [{"seconds": 3.0, "device": "gpu"}],
        "together": [{"seconds": 3.0, "together": 5}],
        "untimed": [{"seconds": 0.0}],
        # Of 30 steps, the first call of 20 compiled.
        "long_calls": [{"seconds": 3.0, "timed_steps": 10}],
    }
    (rows,) = compared(make_sweep(tmp_path / "w", runs)).values()
    times = {name: row["time a step (ste = 1)"] for name, row in rows.items()}
    assert times == {
        "ste_window=2": "49.50",
        "ste": "1.00",
        "same": "1.50",
        "other": "-",
        "together": "-",
        "untimed": "-",
        "long_calls": "4.50",
    }


def test_differences_are_those_of_seeds_in_pairs_with_students_interval(tmp_path):
    ours, theirs = [0.60, 0.64, 0.62, 0.9], [0.50, 0.60, 0.55]
    runs = {
        "ours": [{"accuracies": (0.1, value)} for value in ours],
        "theirs": [{"accuracies": (0.1, value)} for value in theirs],
    }
    record = {"baselines": {"ours": "theirs"}, "seeds": 4, "paper": {"ours": 86.2}}
    folder = make_sweep(tmp_path / "w", runs, **record, source="Table 9")
    ((rows),) = compared(folder).values()
    differences = [100 * (a - b) for a, b in zip(ours, theirs, strict=False)]
    middle = statistics.mean(differences)
    half = 4.302652729 * statistics.stdev(differences) / 3**0.5  # Student's 0.975 quantile, 2 of 3
    column = "last - theirs (points, 95 % interval)"
    assert (
        rows["ours"][column] == f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}], n = 3"
    )
    assert rows["theirs"][column] == "-"
    assert [row["Table 9 (%)"] for row in rows.values()] == ["86.20", "-"]
    assert "**Missing:** 1 of 8 runs: theirs/seed3." in markdown(folder)
    assert "standard error" not in markdown(folder)
    few = pairs.paired_difference({0: 0.75}, {0: 0.5, 1: 0.0})
    assert few == pairs.Difference(0.25, None, 1)
    assert pairs.paired_difference({0: 0.75}, {1: 0.5}) is None


def test_each_run_can_have_a_baseline_of_its_own(tmp_path):
    runs = {
        "a": [{"seconds": 1.0}],
        "a2": [{"seconds": 2.0, "accuracies": (0.6,)}],
        "b": [{"seconds": 3.0}],
        "b2": [{"seconds": 9.0, "accuracies": (0.9,)}],
    }
    folder = make_sweep(tmp_path / "w", runs, baselines={"a2": "a", "b2": "b"})
    (rows,) = compared(folder).values()
    differences = {
        name: row["last - baseline (points, 95 % interval)"] for name, row in rows.items()
    }
    assert differences == {"b2": "+40.00", "a2": "+10.00", "a": "-", "b": "-"}
    assert (
        rows["b2"]["time a step (baseline = 1)"] == "9.00"
    )  # three times, in a third of the steps
    assert "a2 with a, b2 with b" in markdown(folder)


@pytest.mark.parametrize("baseline", [[], [{"finished": False, "accuracies": (0.9,)}]])
def test_before_a_baseline_has_results_the_first_run_that_has_some_is_it(tmp_path, baseline):
    runs = {
        "a": baseline,
        "b": [{"accuracies": (0.1,), "finished": False}],
        "c": [{"accuracies": (0.5,)}],
        "d": [{"accuracies": (0.6,)}],
    }
    folder = make_sweep(tmp_path / "w", runs, baselines=dict.fromkeys("bcd", "a"))
    (rows,) = compared(folder).values()
    rows.pop("a", None)
    column = "last - c (points, 95 % interval)"
    assert {name: row[column] for name, row in rows.items()} == {"b": "-", "c": "-", "d": "+10.00"}
    assert rows["c"]["time a step (c = 1)"] == "1.00"


def test_a_budget_is_marked_in_every_title(tmp_path):
    run = {"epochs": 150, "budget": 0.02}
    folder = make_sweep(tmp_path / "w", {"a": [run], "b": [run]})
    mark = "budget 0.02: 3 of 150 epochs"
    assert list(compared(folder)) == [f"resnet20 on cifar10, {mark}"]
    assert markdown(folder).startswith(f"# Which? ({mark})\n")
    assert report.main([str(folder)]) == 0
    assert f"<!-- resnet20 on cifar10, {mark} -->" in (folder / "little.svg").read_text()
    assert list(sections(render(folder))) == [f"resnet20 on cifar10, {mark}"]


def test_a_sweep_judged_by_held_out_images_says_so_wherever_it_gives_an_accuracy(tmp_path):
    run = {"holdout": 5000, "accuracies": (0.5, 0.6), "top5": 0.9}
    folder = make_sweep(tmp_path / "w", {"a": [run], "b": [{**run, "accuracies": (0.4, 0.5)}]})
    mark = "5,000 training images held out"
    text = markdown(folder)
    assert text.startswith(f"# Which? ({mark})\n")
    assert f"## resnet20 on cifar10, {mark}\n" in text
    for title in ("last holdout", "last top-5 holdout", "best holdout"):
        assert f"| {title} accuracy (%)" in text
    assert "of no test image" in text
    assert "the 5,000 holdout images alone leave" in text
    assert "test set" not in text
    assert "A part of the recipe" not in text
    assert report.main([str(folder)]) == 0
    drawn = (folder / "little.svg").read_text()
    for title in ("Last holdout accuracy", "Holdout accuracy", f"resnet20 on cifar10, {mark}"):
        assert f"<!-- {title} -->" in drawn
    assert "est accuracy -->" not in drawn
    # A page of several folders explains what is on it.
    make_run(tmp_path / "x" / "c")
    assert report.main(["--index", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "picked on the test set itself" in page
    assert "of no test image" in page


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (13.81553, "13.8155"),
        (4.7645e15, "4.76e+15"),
        (math.nan, "nan"),
    ],
)
def test_a_loss_that_has_left_every_scale_does_not_fill_the_line(value, text):
    assert tables.loss(value) == text


def of_another_budget(folder):
    make_run(folder / "b" / "seed0", epochs=6, budget=0.5)
    return "several train.budget, 0.5 (b/seed0), 1.0 (a/seed0)"


def of_other_images(folder):
    make_run(folder / "b" / "seed0", holdout=5000)
    return "several data.holdout, 0 (a/seed0), 5,000 (b/seed0)"


def of_another_revision(folder):
    make_run(folder / "b" / "seed0", revision="ffff" + REVISION)
    return "several revisions of the code: 01234567 (a/seed0), ffff0123 (b/seed0)"


def of_changed_code(folder):
    make_run(folder / "b" / "seed0", dirty=True)
    return "01234567 (a/seed0), 01234567+changes (b/seed0)"


def of_other_changes(folder):
    for name, changes in (("b", "3fa2c1"), ("c", "99c0de")):
        make_run(folder / name / "seed0", dirty=True, changes=changes)
    return "01234567+3fa2c1 (b/seed0), 01234567+99c0de (c/seed0)"


def of_another_version(folder):
    make_run(folder / "b" / "seed0", revision=None)
    return "01234567 (a/seed0), fda_jax 0.1.0 (b/seed0)"


def of_another_network(folder):
    make_run(folder / "a" / "seed1", seed=1, network="vgg_small")
    return "a/seed0 and a/seed1 in "


def of_a_seed_that_is_there(folder):
    make_run(folder / "a" / "seed0 (copy)")
    return "a/seed0 and a/seed0 (copy) in "


@pytest.mark.parametrize(
    "add",
    [
        of_another_budget,
        of_other_images,
        of_another_revision,
        of_changed_code,
        of_other_changes,
        of_another_version,
        of_another_network,
        of_a_seed_that_is_there,
    ],
)
def test_what_does_not_belong_into_one_table_is_refused(tmp_path, capsys, add):
    folder = make_sweep(tmp_path / "w", {"a": [{}], "b": [], "c": []})
    words = add(folder)
    assert report.main([str(folder)]) == 1
    assert words in capsys.readouterr().err
    assert not (folder / "report.md").exists()


def test_revisions_may_be_mixed_where_each_is_named(tmp_path, capsys):
    folder = make_sweep(tmp_path / "w", {"a": [{}], "b": [{"revision": "ffff" + REVISION}]})
    assert report.main([str(folder), "--mixed-revisions"]) == 0
    assert re.search(r"\| revision +\|", capsys.readouterr().out)
    assert report.main([str(folder / "a"), str(folder / "b")]) == 1
    assert "--mixed-revisions" in capsys.readouterr().err
    assert report.main([str(folder / "a"), str(folder / "b"), "--mixed-revisions"]) == 0


def test_times_of_different_revisions_are_not_compared(tmp_path):
    later = {"seconds": 6.0, "revision": "ffff" + REVISION}
    runs = {"ste": [{"method": "ste"}], "same": [{"seconds": 6.0}], "later": [later]}
    folder = make_sweep(tmp_path / "w", runs)
    entries = comparison.read(folder, mixed_revisions=True).fields[0].entries
    assert {e.name: e.relative_seconds for e in entries} == {"ste": 1.0, "same": 2.0, "later": None}


@pytest.mark.parametrize(("longest", "known"), [(3.2, 2.0), (4.0, None)])
def test_times_are_compared_only_where_the_seeds_agree_on_them(tmp_path, capsys, longest, known):
    runs = {"ste": [{"method": "ste", "seconds": s} for s in (3.0, longest)], "other": []}
    runs["other"] = [{"seconds": 2 * s} for s in (3.0, 3.2)]
    folder = make_sweep(tmp_path / "w", runs)
    entries = comparison.read(folder).fields[0].entries
    assert {e.name: e.relative_seconds for e in entries if e.baseline} == {"other": known}
    assert report.main([str(folder)]) == 0
    assert ("time a step (ste = 1)" in capsys.readouterr().out) == (known is not None)


def test_a_run_that_went_on_at_another_revision_is_of_both(tmp_path):
    folder = make_run(tmp_path / "a")
    path = folder / "environment.json"
    before = json.loads(path.read_text())
    now = environment.environment(before)
    assert now["earlier_revisions"] == ["01234567"]
    path.write_text(json.dumps({**before, "revision": "f" * 40, "earlier_revisions": ["01234567"]}))
    assert only_row(folder)["revision"] == "01234567 then ffffffff"


def test_a_sweep_with_an_axis_gets_a_figure_against_it(tmp_path, capsys):
    runs = {f"n={n}": [{"accuracies": (0.1, 0.1 * n + s)} for s in (0, 0.01)] for n in (1, 2, 3)}
    points = [["one", n, f"n={n}"] for n in (1, 2, 3)] + [["two", 2, "n=2"], ["two", 4, "n=4"]]
    folder = make_sweep(tmp_path / "w", {**runs, "n=4": []}, axis="terms", points=points)
    assert report.main([str(folder)]) == 0
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert written.index("(little_points.png)") < written.index("(little.png)")
    drawn = (folder / "little_points.svg").read_text()
    for words in ("terms", "one", "two", "milliseconds a step", "resnet20 on cifar10"):
        assert f"<!-- {words} -->" in drawn


@pytest.mark.slow
def test_figure_1_is_drawn_by_its_own_flag(tmp_path, capsys):
    assert report.main(["--figure1", str(tmp_path / "new")]) == 0
    assert str(tmp_path / "new" / "figure1.png") in capsys.readouterr().out
    drawn = (tmp_path / "new" / "figure1.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in paper_figures.surrogates())
    for words in ([], [str(tmp_path), "--figure1", str(tmp_path)]):
        with pytest.raises(SystemExit):
            report.main(words)


def test_spectra_of_figure_1_are_the_integrals_of_the_published_functions():
    k = np.arange(1, paper_figures.HARMONICS + 1, 2)
    published = {
        "Sign": lambda t: 1.0,
        "Sine module, N = 10": lambda t: sum(
            4 / np.pi * np.sin((2 * i + 1) * 0.1 * t) / (2 * i + 1) for i in range(10)
        ),
        "tanh of DSQ": lambda t: np.tanh(np.log(9) / 2 * min(t, 1.0)) / 0.8,
        "SignSwish of BNN+": lambda t: (
            2 / (1 + np.exp(-5 * t)) * (1 + 5 * t * (1 - 1 / (1 + np.exp(-5 * t)))) - 1
        ),
    }
    ours = {name: paper_figures.spectrum(f) for name, f in paper_figures.surrogates().items()}
    assert list(ours) == list(published)
    sign = 4 / (np.pi * k)
    np.testing.assert_allclose(ours["Sign"], sign, rtol=5e-5)
    np.testing.assert_allclose(ours["Sine module, N = 10"], np.where(k < 20, sign, 0), atol=2e-6)
    for name in ("tanh of DSQ", "SignSwish of BNN+"):
        for place in (1, 9, 19, 51):
            edge = 1.0 if name == "tanh of DSQ" else 4.0  # what lies beyond is the sign
            inside, _ = scipy.integrate.quad(
                lambda t, f=published[name], w=0.1 * place: f(t) * np.sin(w * t), 0, edge, limit=200
            )
            beyond = (np.cos(0.1 * place * edge) - np.cos(place * np.pi / 2)) / (0.1 * place)
            expected = 0.4 / np.pi * (inside + beyond)
            assert ours[name][(place - 1) // 2] == pytest.approx(expected, abs=2e-5), (name, place)


def test_networks_of_a_sweep_never_share_a_table(tmp_path):
    runs = {"a": [{"network": "resnet20"}], "b": [{"network": "resnet20_bireal"}]}
    found = compared(make_sweep(tmp_path / "w", runs))
    assert {heading: list(rows) for heading, rows in found.items()} == {
        "resnet20 on cifar10": ["a"],
        "resnet20_bireal on cifar10": ["b"],
    }


def test_the_command_line_reports_a_sweep_with_a_picture_of_1200_pixels(tmp_path, capsys):
    methods = {f"m{i}": [{"flips": (0.5, 0.0, 0.1 * i)}] for i in range(1, 9)}
    runs = {
        "ste": [{"method": "ste"}] * 2,
        **methods,
        "real": [{"method": "full_precision"}],
        "bireal": [{"network": "resnet20_bireal", "accuracies": (), "finished": False}],
    }
    folder = make_sweep(tmp_path / "w", runs, overrides={"train.epochs": "3"})
    assert report.main([str(folder)]) == 0
    assert "`train.epochs=3`" in capsys.readouterr().out
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert "(little.png)" in written
    assert size_px(folder / "little.png")[0] == 1200
    # Letters are shapes in an SVG; their names stay beside them as comments.
    drawn = (folder / "little.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in runs)
    assert not (folder / "curves.png").exists()


def test_an_index_shows_every_sweep_of_a_folder_on_one_page(tmp_path, capsys):
    for name, network in (("one", "resnet20"), ("two", "resnet8")):
        runs = {"ste": [{"method": "ste", "network": network}] * 2, "fda": [{"network": network}]}
        make_sweep(tmp_path / name, runs, sweep=name, question=f"Is it {name}?", seeds=2)
    (tmp_path / "two" / report.NOTES).write_text("Nobody knows.\n")
    assert report.main(["--index", str(tmp_path)]) == 0
    page = (tmp_path / "README.md").read_text()
    assert page.strip() in capsys.readouterr().out
    first, second = page.split("\n## ")[1:]
    assert first.startswith("[one](one/report.md)\n\nIs it one?\n\n**Missing:** 1 of 4 runs.")
    assert "### resnet20 on cifar10" in first
    assert "50.00 ± 0.00" in first
    assert "train loss" not in first
    assert "(one/one.png)" in first
    assert "### resnet8 on cifar10" in second
    assert second.rstrip().endswith("Nobody knows.")
    for name in ("one", "two"):
        assert "train loss" in (tmp_path / name / "report.md").read_text()


def test_an_index_shows_runs_that_are_of_no_sweep_too(tmp_path):
    for revision in "01":
        make_run(tmp_path / "some" / f"run{revision}", revision=8 * revision)
    assert report.main(["--index", str(tmp_path)]) == 1
    assert not (tmp_path / "README.md").exists()
    assert report.main(["--index", str(tmp_path), "--mixed-revisions"]) == 0
    page = (tmp_path / "README.md").read_text()
    assert "## [some](some/report.md)\n\n### resnet20 on cifar10" in page
    assert "(some/curves.png)" in page


def test_an_index_takes_what_holds_a_run_and_names_the_rest(tmp_path, capsys):
    make_run(tmp_path / "alone")  # whose checkpoints are gone
    (tmp_path / "pictures" / "of_it").mkdir(parents=True)
    make_sweep(tmp_path / "to_come", {"a": []})
    assert report.main(["--index", str(tmp_path)]) == 0
    told = capsys.readouterr().out.splitlines()
    for name in ("pictures", "to_come"):
        assert f"No run in {name}: {tmp_path / name}" in told
    page = (tmp_path / "README.md").read_text()
    assert re.findall("^## .*", page, re.MULTILINE) == ["## [alone](alone/report.md)"]


def test_an_index_does_not_replace_a_page_that_a_person_wrote(tmp_path, capsys):
    make_sweep(tmp_path / "one", {"ste": [{"method": "ste"}]})
    (tmp_path / "README.md").write_text("# Mine")
    assert report.main(["--index", str(tmp_path)]) == 1
    assert "move it away" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "# Mine"


def test_an_index_of_a_folder_without_runs_is_refused_with_a_remedy(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert report.main(["--index", str(tmp_path)]) == 1
    assert "give the folder that holds" in capsys.readouterr().err
    assert not (tmp_path / "README.md").exists()


@pytest.mark.parametrize("content", ["{", "{}", "[]"])
def test_a_damaged_sweep_is_named_with_a_remedy(tmp_path, capsys, content):
    folder = make_sweep(tmp_path / "w", {"a": [{}]})
    (folder / "sweep.json").write_text(content)
    assert report.main([str(folder)]) == 1
    assert re.search(r"sweep\.json cannot be read .*restore", capsys.readouterr().err)


def test_a_sweep_without_a_run_is_named_with_a_remedy(tmp_path, capsys):
    assert report.main([str(make_sweep(tmp_path / "w", {"a": []}))]) == 1
    assert "no run of the sweep" in capsys.readouterr().err


@given(st.lists(st.floats(-0.5, 1.5), min_size=1, max_size=11).map(sorted))
def test_names_beside_lines_keep_apart_and_stay_inside(heights):
    gap = 0.1
    places = sweep_figures._apart(heights, gap)
    assert all(after - before >= gap - 1e-9 for before, after in itertools.pairwise(places))
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9
    inside = min(heights) >= 0 and max(heights) <= 1
    if inside and all(b - a > gap for a, b in itertools.pairwise(heights)):
        assert places == pytest.approx(heights)
