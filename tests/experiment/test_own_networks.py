"""Networks of one's own go the whole way: trained, resumed, compared, distilled and shipped."""

import shutil
import sys

import numpy as np
import pytest

from fda_jax import deploy, doctor, experiment, export, report
from fda_jax.experiment import sweep
from fda_jax.experiment.setup import ConfigError
from tests.conftest import STE, small_config
from tests.experiment.conftest import assert_same_run
from tests.experiment.test_sweep import SMALL, write


def config_of(name, **changes):
    return {**small_config(**{"model.name": name, **changes}), "method": STE}


@pytest.mark.slow
def test_a_network_of_ones_own_goes_the_whole_way(nets, tmp_path, capsys):
    config = config_of(nets)
    result = experiment.train(config, "run")
    assert (result["model"], result["steps"]) == (nets, 10)
    shutil.copytree("run", "whole")
    (tmp_path / "run" / "result.json").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "10")
    sys.modules.pop("nets")  # as in another process
    experiment.train(config, "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    answers = experiment.evaluate(None, "run")
    assert answers["last"]["accuracy"] == pytest.approx(result["last_test_accuracy"])
    with experiment.opened("run") as run:
        assert "latent_kernel" in run.last().params["conv1"]
    assert report.main(["run"]) == 0
    assert nets in (tmp_path / "run" / "report.md").read_text()
    assert doctor.main(["run"]) != doctor.UNREADABLE
    capsys.readouterr()
    assert export.main(["run", "--out=net.npz"]) == 0
    assert "355 of 355 answers are the run's" in capsys.readouterr().out
    assert export.main(["run", "--out=net.onnx"]) == 0
    assert "in ONNX Runtime" in capsys.readouterr().out
    sys.modules.pop("nets")
    (tmp_path / "nets.py").unlink()
    with pytest.raises(ValueError, match="no module 'nets': let it lie in the current folder"):
        experiment.evaluate(None, "run")
    network = deploy.load("net.npz")  # needs it no more
    assert network.facts["network"] == nets
    assert network(np.zeros((3, 8, 8, 1), np.uint8)).shape == (3, 10)


def test_a_network_that_cannot_be_trained_is_refused_before_anything_is_compiled(nets, tmp_path):
    with pytest.raises(ValueError, match=r"no function 'dens' \(did you mean 'dense'"):
        experiment.train(config_of("nets:dens"), "run")
    source = (tmp_path / "nets.py").read_text()
    (tmp_path / "nets.py").write_text(source.replace("axis_name=self.axis_name,", ""))
    sys.modules.pop("nets", None)
    with pytest.raises(ValueError, match="differ from device to device"):
        experiment.train(config_of(nets), "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_network_of_ones_own_is_a_run_of_a_sweep_and_its_seeds_one_program(nets, tmp_path):
    runs = [{"model.name": nets}]
    small = [word for word in SMALL if not word.startswith("model.name")]
    asked = sweep.read(write(tmp_path, runs), [*small, "train.epochs=1"])
    assert list(asked.runs) == ["model.name=nets-dense"]
    assert not sweep.train(asked, tmp_path / "w", seeds=2, together="always")
    assert report.main([str(tmp_path / "w")]) == 0
    assert nets in (tmp_path / "w" / "report.md").read_text()


@pytest.mark.slow
def test_a_network_of_ones_own_teaches_and_is_started_from(nets):
    experiment.train(config_of(nets, **{"train.epochs": 1}), "first")
    taught = config_of(nets, **{"train.teacher": "first", "train.epochs": 1})
    assert experiment.train(taught, "taught")["steps"] == 5
    onwards = config_of(nets, **{"train.init_from": "first", "train.epochs": 1})
    assert experiment.train(onwards, "onwards")["steps"] == 5
    with pytest.raises(ConfigError, match="the same network"):
        experiment.train({**onwards, "model": {**onwards["model"], "name": "nets:narrow"}}, "no")
