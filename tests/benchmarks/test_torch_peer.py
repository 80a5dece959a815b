"""The PyTorch peer of the benchmarks is the same network: equal losses in double precision."""

import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from fda_jax import models
from fda_jax.training.losses import cross_entropy
from fda_jax.training.packing import pack_parameters

torch = pytest.importorskip("torch", reason="PyTorch, the other side of a benchmark, is missing")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import steps  # noqa: E402
import torch_peer  # noqa: E402

BATCH, SIDE, WIDTHS = 4, 16, (8, 16, 32)


def generic(tree: dict, seed: int = 0) -> dict:
    """Double-precision values near `tree`'s, among which no activation is exactly 0."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: np.float64(x) + 0.1 * rng.standard_normal(x.shape), tree)


def ours(network: str, method: str, images: np.ndarray, labels: np.ndarray) -> tuple:
    """Parameters by path, the loss at progress 0 and its gradient by path."""
    model = models.build(network, num_classes=10, method=method, dtype=jnp.float64)
    model = model.clone(widths=WIDTHS)
    inputs = (images / 255.0 - 0.5) / 0.25
    shapes = jax.eval_shape(model.init, jax.random.key(0), inputs)
    params = generic(jax.tree.map(lambda leaf: np.zeros(leaf.shape), shapes["params"]))
    statistics = jax.tree.map(lambda leaf: np.ones(leaf.shape), shapes["batch_stats"])

    def loss_fn(params: dict) -> jax.Array:
        variables = {"params": params, "batch_stats": statistics}
        logits, _ = model.apply(
            variables, inputs, train=True, progress=0.0, mutable=["batch_stats"]
        )
        return jnp.mean(cross_entropy(logits, labels, label_smoothing=0.0))

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(params)
    flat = flatten_dict({"params": params, "batch_stats": statistics}, sep="/")
    return flat, float(loss), flatten_dict(gradient, sep="/")


@pytest.mark.parametrize("network", ["resnet20", "vgg_small"])
@pytest.mark.parametrize("method", ["ste", "fda"])
def test_loss_and_gradient_are_ours(network, method):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    labels = rng.integers(0, 10, BATCH)
    with jax.enable_x64(True):
        variables, loss, gradient = ours(network, method, images, labels)
    trainer = torch_peer.Trainer(network, method, variables, images, labels, compiled=False)
    assert trainer.backward() == pytest.approx(loss, rel=1e-6)
    if method == "ste":
        return  # sums of signs are often 0 or equal: PReLU's slope and the pool's choice differ
    for name, theirs in trainer.gradients().items():
        scale = np.abs(gradient[name]).max()
        np.testing.assert_allclose(theirs, gradient[name], rtol=0, atol=2e-5 * scale, err_msg=name)


@pytest.mark.parametrize("network", ["resnet20", "vgg_small"])
def test_the_losses_of_several_steps_are_ours(network):
    """Optimizer, weight decay, schedules and running statistics too."""
    with jax.enable_x64(True):
        setting = steps.make_setting(
            network,
            "fda",
            BATCH,
            image_shape_hwc=(SIDE, SIDE, 3),
            augment=False,
            sizes={"widths": WIDTHS, "dtype": jnp.float64},
        )
        state = setting.state
        params = generic(state.params)
        statistics = jax.tree.map(np.float64, state.batch_stats)
        state = state.replace(
            params=params,
            batch_stats=statistics,
            opt_state=setting.optimizer.init(pack_parameters(params)),
        )
        step = jax.jit(setting.train_step)
        losses = []
        for _ in range(5):
            state, metrics, _ = step(state, setting.batch, setting.key)
            losses.append(float(metrics.means()["loss"]))
    trainer = torch_peer.Trainer(
        network,
        "fda",
        flatten_dict({"params": params, "batch_stats": statistics}, sep="/"),
        np.asarray(setting.batch.images),
        np.asarray(setting.batch.labels),
        compiled=False,
    )
    theirs = [trainer.step() for _ in losses]
    assert abs(losses[-1] - losses[0]) > 0.01
    np.testing.assert_allclose(theirs, losses, rtol=1e-5)


def test_gradient_of_ste_ends_at_its_window():
    gradient = torch_peer.within_window(
        torch.arange(1.0, 5.0), torch.tensor([-2.0, -0.5, 0.5, 2.0])
    )
    np.testing.assert_array_equal(gradient, [0.0, 2.0, 3.0, 0.0])


@pytest.mark.parametrize("terms", [1, 2, 10, 19])
def test_closed_slope_is_the_literal_sum(terms):
    x = torch.linspace(-1.0, 1.0, 1001, dtype=torch.float64)
    closed = torch_peer.closed_slope(x, torch.tensor(float(terms), dtype=torch.float64))
    np.testing.assert_allclose(closed, torch_peer.literal_slope(x, terms), rtol=1e-9)


@pytest.mark.parametrize("network", ["resnet20", "vgg_small"])
@pytest.mark.parametrize("method", ["ste", "full_precision"])
def test_a_trained_peer_answers_as_ours(network, method):
    model = models.build(network, num_classes=10, method=method).clone(widths=WIDTHS)
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8)
    inputs = jnp.asarray((images / 255.0 - 0.5) / 0.25, jnp.float32)
    variables = generic(jax.jit(model.init)(jax.random.key(0), inputs))
    variables = jax.tree.map(np.float32, variables)
    expected = jax.jit(model.apply)(variables, inputs)
    # A real layer's kernel bears another name.
    flat = {
        re.sub(r"(conv\d/)kernel", r"\1latent_kernel", name): leaf
        for name, leaf in flatten_dict(variables, sep="/").items()
    }
    peer = torch_peer.Predictor(network, flat, is_binary=method == "ste")
    theirs = peer(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(theirs, expected, atol=1e-4 * np.abs(expected).max())
