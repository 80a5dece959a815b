"""The summary's command: a network by its name, and a run's."""

import json

import pytest

from fda_jax import data, models, summary
from tests.conftest import REPOSITORY

DIGITS = ["--network=resnet_digits", "--method=ste"]


def test_a_network_by_its_name_is_summed_up_as_the_page_shows(capsys):
    words = ["--network=resnet_digits", "--method=fda", "--dataset=digits"]
    assert summary.main(words) == 0
    out = capsys.readouterr().out
    model = models.build("resnet_digits", num_classes=10, method="fda")
    assert out == f"{models.summarize(model, (8, 8, 1))}\n"
    page = (REPOSITORY / "docs" / "shipping.md").read_text()
    assert f"python -m fda_jax.summary {' '.join(words)}\n```\n\n```text\n{out}```" in page


@pytest.mark.slow
def test_knobs_and_another_image_reach_the_network(capsys):
    words = ["--network=resnet_digits", "--method=abc_net", "--knob=weight_bases=3"]
    words += ["--knob=scale=filter", "--image_shape=16,16,3", "--num_classes=7"]
    words += ["--real_layers=stage1_*1/conv1", "--real_layers=stage2_block2/*"]
    assert summary.main(words) == 0
    out = capsys.readouterr().out
    bits = {line.split()[1]: line.split("|")[4].strip() for line in out.splitlines()[2:17]}
    assert (bits["stage1_block1/conv1"], bits["stage2_block2/conv1"]) == ("32 x 32",) * 2
    assert (bits["stage1_block2/conv1"], bits["stage2_block1/conv1"]) == ("2 x 1",) * 2
    assert "| 2 x 1 " in out
    assert "| 16 x 16 x 3 " in out
    assert "| classifier           | Dense      | 7 " in out


def test_a_run_is_summed_up_without_its_data(capsys, tmp_path):
    run = REPOSITORY / "results" / "digits" / "fda" / "seed0"
    assert summary.main([str(run)]) == 0
    own = capsys.readouterr().out
    assert summary.main([*DIGITS[:1], "--dataset=digits"]) == 0
    assert capsys.readouterr().out == own
    # Of photographs in a folder the run's own record says how many classes there are.
    config = json.loads((run / "config.json").read_text())
    config["data"] = {**config["data"], "name": "folder:photographs", "image_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert summary.main([str(tmp_path)]) == 1
    assert "add --image_shape and --num_classes" in capsys.readouterr().err
    (tmp_path / "dataset.json").write_text('{"classes": ["cat", "dog"]}')
    assert summary.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| image                  | 8 x 8 x 3 " in out
    assert "| classifier           | Dense      | 2 " in out


def test_a_network_of_ones_own_is_summed_up(capsys, tmp_path, monkeypatch):
    (tmp_path / "their_network.py").write_text(
        "from fda_jax import models\n\n\n"
        "def shallow() -> models.ModelSpec:\n"
        "    def make(**arguments):\n"
        "        return models.ResNet(stage_sizes=(1,), widths=(8,), **arguments)\n\n"
        "    return models.ModelSpec(make, min_side=4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--network=their_network:shallow", "--method=binarynet", "--dataset=digits"]
    assert summary.main(words) == 0
    assert "| stage1_block1/conv2  | BinaryConv | 8 x 8 x 8 | 1 x 1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere holds no run"),
        (["--network=resnet21", "--dataset=digits"], "did you mean 'resnet20'"),
        ([*DIGITS, "--knob=scle=filter", "--dataset=digits"], "has no knob 'scle'"),
        (["--network=alexnet", "--dataset=digits"], "do not fit alexnet"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(words, message, capsys):
    assert summary.main(words) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["runs/x", "--network=resnet20"],
        ["runs/x", "--method=ste"],
        ["--network=resnet20"],
        ["--network=resnet20", "--image_shape=32,32,3"],
        [*DIGITS, "--dataset=digits", "--image_shape=8,8"],
        [*DIGITS, "--dataset=digits", "--knob=scale"],
    ],
)
def test_flags_that_do_not_belong_together_are_refused(words, capsys):
    with pytest.raises(SystemExit) as stop:
        summary.main(words)
    assert stop.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("True", True), ("filter", "filter"), ("3", 3)]
)
def test_a_knob_is_read_as_on_the_command_line_of_a_run(word, value):
    words = [*DIGITS, "--dataset=digits", f"--knob=scale_in_gradient={word}"]
    assert summary._flags(words).knob == [("scale_in_gradient", value)]


def test_every_data_set_of_the_package_can_be_named():
    for spec in data.SPECS.values():
        assert summary._flags(["--network=resnet20", f"--dataset={spec.name}"]).dataset == spec.name
