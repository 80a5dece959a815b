"""Every benchmark runs from end to end at tiny size, and what it writes can be reported."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

FOLDER = REPOSITORY / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if "record.parser(" in path.read_text())
NEEDS_TORCH = {"throughput_cpu"}


def python(*words, folder):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_the_benchmarks_are_found():
    assert {"estimator_cost", "growth", "scaling", "startup", "throughput_gpu"} <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_and_can_be_reported(name, tmp_path):
    if name in NEEDS_TORCH:
        pytest.importorskip("torch", reason="the peer is PyTorch: pip install torch==2.13.0")
    done = python(FOLDER / f"{name}.py", f"--out={tmp_path}", "--tiny", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["tiny"]
    assert record["question"]
    assert record["tables"]
    for table in record["tables"]:
        assert table["rows"], table["title"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])
    for figure in record["figures"]:
        assert (tmp_path / figure).stat().st_size > 10_000
    report = ["--results", tmp_path, "--readme", tmp_path / "README.md"]
    assert python(FOLDER / "report.py", *report, folder=tmp_path).returncode == 0
    text = (tmp_path / "README.md").read_text()
    assert f"## {name}" in text
    assert "nothing here is a measurement" in text


def test_the_report_refuses_a_folder_without_records(tmp_path):
    done = python(FOLDER / "report.py", "--results", tmp_path, folder=tmp_path)
    assert done.returncode == 1
    assert "no records" in done.stderr
