"""The networks that are committed: every JAX that we support runs them, and they know CIFAR-10."""

import json
import pickle
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from fda_jax import deploy
from fda_jax.ops import native
from tests.conftest import REPOSITORY

MODEL = REPOSITORY / "results/table2/fda_noise=none/seed0/network.onnx"
PATH = REPOSITORY / "results/table2/fda/seed0/network.npz"
UNPACK = REPOSITORY.parent / "shared/tools/unpack_cifar10.py"


@pytest.fixture(scope="module")
def network():
    return deploy.load(PATH)


def test_it_is_the_network_of_the_record(network):
    assert network.facts["network"] == "resnet20"
    assert network.facts["method"] == "fda"
    assert network.facts["step"] == 156_250
    assert len(network.facts["classes"]) == 10
    assert {layer["bits"] for layer in network.facts["binary"].values()} == {1}
    assert PATH.stat().st_size < 125_000


def test_its_weights_have_two_values_in_a_layer(network):
    for name, kernel in network.weights().items():
        (scale,) = np.unique(np.abs(kernel))
        assert scale > 0, name


@pytest.mark.skipif(native.kernels() is None, reason="no C++ compiler, or FDA_JAX_NATIVE=0")
def test_counting_bits_its_answers_are_the_same_bit_for_bit(network):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    assert network.counts_bits
    real = deploy.load(PATH, arithmetic="real")
    np.testing.assert_array_equal(network(images), real(images))


def test_the_onnx_model_is_that_of_the_record():
    facts = onnxruntime.InferenceSession(MODEL).get_modelmeta().custom_metadata_map
    assert (facts["network"], facts["method"], facts["step"]) == ("resnet20", "fda", "156250")
    assert len(json.loads(facts["classes"])) == 10
    assert MODEL.stat().st_size < 80_000


@pytest.mark.slow
def test_both_know_real_photographs(network, tmp_path):
    if not UNPACK.exists():
        pytest.skip("the data are not here: shared/tools/unpack_cifar10.py beside the repository")
    subprocess.run([sys.executable, UNPACK, tmp_path, "--format", "python"], check=True)
    (path,) = tmp_path.rglob("test_batch")
    batch = pickle.loads(path.read_bytes(), encoding="bytes")
    images = batch[b"data"][:500].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    (of_model,) = onnxruntime.InferenceSession(MODEL).run(None, {"images": images})
    for logits in (network(images), of_model):
        answers = np.argmax(np.asarray(logits), axis=-1)
        assert np.mean(answers == np.array(batch[b"labels"][:500])) > 0.8
