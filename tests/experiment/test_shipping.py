"""A run's network in a file, beside the run."""

import dataclasses
import sys

import numpy as np
import onnx
import pytest

from fda_jax import deploy, export
from fda_jax.experiment import WorkdirError
from fda_jax.experiment.shipping import release
from fda_jax.ops import native


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_release_answers_as_its_run_on_every_test_image_and_only_reads_it(whole, tmp_path):
    folder, result = whole
    before = stamps(folder)
    made = release(folder, tmp_path / "net.npz")
    assert stamps(folder) == before
    assert made.examples == result["test_examples"]
    assert made.run_accuracy == pytest.approx(result["last_test_accuracy"])
    for answers in made.answers.values():
        assert answers.accuracy == made.run_accuracy
        assert answers.same == made.examples
        assert answers.largest_difference < 1e-4
    assert made.file_bytes == (tmp_path / "net.npz").stat().st_size
    facts = deploy.load(tmp_path / "net.npz").facts
    assert (facts["network"], facts["method"], facts["dataset"]) == ("tiny", "fda", "digits")
    assert facts["classes"] == list("0123456789")
    assert (facts["seed"], facts["step"]) == (0, result["steps"])


def test_the_best_checkpoint_can_be_taken(whole, tmp_path):
    folder, result = whole
    made = release(folder, tmp_path / "net.npz", checkpoint="best")
    assert made.answers["real"].accuracy == pytest.approx(result["best_test_accuracy"])
    assert made.facts["step"] == result["best_epoch"] * result["steps"] / result["epochs"]


def test_an_onnx_file_answers_as_its_run_in_another_runtime(whole, tmp_path, capsys):
    folder, result = whole
    out = tmp_path / "net.onnx"
    assert export.main([str(folder), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    assert f"{out}: {out.stat().st_size:,} bytes, 1/" in printed
    examples, accuracy = result["test_examples"], f"{result['last_test_accuracy']:.2%}"
    same = f"{accuracy}: {examples:,} of {examples:,} answers are the run's"
    assert f"in ONNX Runtime, in float32 {same}" in printed
    assert f"bits of weights {2 * 3 * 3 * 8 * 8 // 8} bytes" in printed
    facts = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert (facts["network"], facts["step"]) == ("tiny", str(result["steps"]))
    assert export.main([str(folder), f"--out={out}"]) == 1
    assert "net.onnx exists already" in capsys.readouterr().err


def test_a_qonnx_file_answers_as_its_run_in_another_runtime(whole, tmp_path, capsys):
    folder, result = whole
    out = tmp_path / "net.onnx"
    assert export.main([str(folder), f"--out={out}", "--qonnx"]) == 0
    printed = capsys.readouterr().out
    examples, accuracy = result["test_examples"], f"{result['last_test_accuracy']:.2%}"
    same = f"{accuracy}: {examples:,} of {examples:,} answers are the run's"
    assert f"in ONNX Runtime, in float32 {same}" in printed
    assert f"weights -1 and 1 {4 * 2 * 3 * 3 * 8 * 8:,} bytes" in printed
    assert "BipolarQuant" in {node.op_type for node in onnx.load(out).graph.node}
    assert export.main([str(folder), f"--out={tmp_path / 'net.npz'}", "--qonnx"]) == 1
    assert "name it net.onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [out]


def test_without_a_compiler_either_file_is_written(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "kernels", lambda: None)
    for name in ("net.npz", "net.onnx"):
        assert export.main([str(whole[0]), f"--out={tmp_path / name}"]) == 0
        printed = capsys.readouterr().out
        assert "by counting bits" not in printed
        assert "answers are the run's" in printed


def test_without_a_runtime_no_onnx_file_is_written(whole, tmp_path, monkeypatch, capsys):
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            assert export.main([str(whole[0]), f"--out={tmp_path / 'net.onnx'}"]) == 1
        assert "pip install 'fda_jax[onnx]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_another_network_in_the_file_would_be_seen(whole, tmp_path, monkeypatch):
    load = deploy.load

    def turned(path):
        network = load(path)
        wrong = {
            name: np.invert(array) if name.endswith("/planes") else array
            for name, array in network.arrays.items()
        }
        return dataclasses.replace(network, arrays=wrong)

    monkeypatch.setattr(deploy, "load", turned)
    made = release(whole[0], tmp_path / "net.npz")
    assert all(answers.largest_difference > 0.1 for answers in made.answers.values())


def test_what_cannot_be_released_is_refused_in_words(whole, tmp_path, monkeypatch):
    taken = tmp_path / "taken.npz"
    taken.write_text("mine")
    with pytest.raises(WorkdirError, match=r"taken\.npz exists already"):
        release(whole[0], taken)
    assert taken.read_text() == "mine"
    with pytest.raises(WorkdirError, match=r"no folder .*nowhere: make it"):
        release(whole[0], tmp_path / "nowhere" / "net.npz")
    for name in ("net.tflite", "net"):
        with pytest.raises(ValueError, match=r"neither as net\.npz, .* nor as net\.onnx"):
            release(whole[0], tmp_path / name)
    with pytest.raises(WorkdirError, match=r"holds no run"):
        release(tmp_path, tmp_path / "net.npz")
    with pytest.raises(ValueError, match=r"checkpoint is 'first': use last or best"):
        release(whole[0], tmp_path / "net.npz", checkpoint="first")

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(WorkdirError, match=r"could not be written \(No space left on device\)"):
        release(whole[0], tmp_path / "net.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.npz"]


def test_the_command_says_how_small_the_file_is_and_how_it_answers(whole, tmp_path, capsys):
    folder, result = whole
    out = tmp_path / "net.npz"
    assert export.main([str(folder), f"--out={out}"]) == 0
    printed = capsys.readouterr().out
    # 1,412 numbers: of so tiny a network the programs are most of the file.
    size, real = out.stat().st_size, 4 * 1412
    assert f"{out}: {size:,} bytes, {size / real:.1f} times its {real:,} bytes" in printed
    examples, accuracy = result["test_examples"], f"{result['last_test_accuracy']:.2%}"
    assert f"test accuracy of the run {accuracy}" in printed
    same = f"{accuracy}: {examples:,} of {examples:,} answers are the run's"
    assert f"in floating point {same}" in printed
    assert (f"by counting bits {same}" in printed) == (native.kernels() is not None)
    assert export.main([str(folder), f"--out={out}"]) == 1
    assert "error: " in capsys.readouterr().err
