"""The GPU benchmark's PyTorch networks are ours: equal losses and gradients in double precision."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fda_jax import models
from fda_jax.training.losses import cross_entropy

torch = pytest.importorskip("torch", reason="PyTorch, the other side of a benchmark, is missing")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "workers"))
import torch_gpu  # noqa: E402

BATCH = 4
# Widths of the stages, side of the images in pixels, blocks of a stage.
SIZES = {"resnet20": ((8, 16, 32), 16, 1), "resnet18": ((8, 16, 24, 32), 64, 2)}


def ours(network: str, images: np.ndarray, labels: np.ndarray) -> tuple:
    """Variables by path, the loss at progress 0 and its gradient by path."""
    widths = SIZES[network][0]
    model = models.build(network, num_classes=10, dtype=jnp.float64)
    model = model.clone(widths=widths, stage_sizes=(1,) * len(widths))
    inputs = (images / 255.0 - 0.5) / 0.25
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    rng = np.random.default_rng(0)
    # Double-precision values among which no activation is exactly 0.
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape), shapes["params"])
    statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes["batch_stats"])

    def loss_fn(params: dict) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(
            variables, inputs, train=True, progress=0.0, mutable=["batch_stats"]
        )
        return jnp.mean(cross_entropy(logits, labels, label_smoothing=0.0))

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params)
    flat = flatten_dict({"params": params, "batch_stats": statistics}, sep="/")
    return flat, float(loss), flatten_dict({"params": gradient}, sep="/")


@pytest.mark.parametrize("network", SIZES)
def test_loss_and_gradient_are_ours(network, tmp_path):
    widths, side, blocks = SIZES[network]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, side, side, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, BATCH)
    with jax.enable_x64(True):
        variables, loss, gradient = ours(network, images, labels)
    theirs = torch_gpu.NETWORKS[network](blocks, widths).double()
    np.savez(tmp_path / "variables.npz", **variables)
    torch_gpu.load(theirs, str(tmp_path / "variables.npz"))
    inputs = torch.from_numpy((images / 255.0 - 0.5) / 0.25).permute(0, 3, 1, 2)
    logits = theirs(inputs, torch.tensor(torch_gpu.NOISE_SCALE), torch.tensor(10.0))
    value = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))
    assert value.item() == pytest.approx(loss, rel=1e-6)
    value.backward()
    named = {name: torch.from_numpy(np.array(value)) for name, value in gradient.items()}
    found = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    # PyTorch computes the slope in float32.
    for name, expected in torch_gpu.translated(named).items():
        scale = expected.abs().max().item()
        np.testing.assert_allclose(
            found.pop(name), expected, rtol=0, atol=1e-4 * scale, err_msg=name
        )
    assert found == {}
