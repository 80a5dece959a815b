"""Vision transformers: their layout in NumPy, their sizes, and that they learn."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fda_jax.layers import make_method
from fda_jax.models import (
    ParameterCount,
    VisionTransformer,
    build,
    check_image_shape,
    count_parameters,
)
from fda_jax.models.summary import group_labels

# This generator compiles in a fraction of the default's time.
KEY = jax.random.key(0, impl="rbg")
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 4, 6, 2)).astype(np.float32)
LINEAR = ("query", "key", "value", "project", "widen", "shrink")
SIZES = {"patch_px": 2, "width": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 3}


def small(method: str) -> VisionTransformer:
    return VisionTransformer(3, make_method(method), **SIZES)


@functools.cache
def initial(method: str):
    return jax.jit(small(method).init)(KEY, IMAGES)["params"]


# --- layout ---------------------------------------------------------------------------------


def norm(x: np.ndarray, params) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * params["scale"] + params["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def linear(x: np.ndarray, block, name: str) -> np.ndarray:
    w = block[name]["latent_kernel"]
    binary_x, binary_w = np.where(x > 0, 1.0, -1.0), np.where(w > 0, 1.0, -1.0)
    return norm(binary_x @ binary_w * np.abs(w).mean(), block[f"{name}_norm"])


def attention(x: np.ndarray, block, heads: int) -> np.ndarray:
    q, k, v = (linear(x, block, name) for name in LINEAR[:3])
    out, size = np.zeros_like(q), q.shape[-1] // heads
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        for image in range(len(x)):
            scores = q[image, :, part] @ k[image, :, part].T / math.sqrt(size)
            out[image, :, part] = softmax(scores) @ v[image, :, part]
    return out


def network(images: np.ndarray, params) -> np.ndarray:
    batch, height, width, _ = images.shape
    patches = [
        images[:, i : i + 2, j : j + 2].reshape(batch, -1)
        for i in range(0, height, 2)
        for j in range(0, width, 2)
    ]
    stem = params["stem"]
    x = np.stack(patches, 1) @ stem["kernel"].reshape(-1, SIZES["width"]) + stem["bias"]
    token = np.broadcast_to(params["class_token"], (batch, 1, SIZES["width"]))
    x = np.concatenate([token, x], 1) + params["position_embedding"]
    for number in range(1, SIZES["depth"] + 1):
        block = params[f"block{number}"]
        mixed = attention(norm(x, block["attention_norm"]), block, SIZES["num_heads"])
        x = x + linear(norm(mixed, block["mixed_norm"]), block, "project")
        hidden = gelu(linear(norm(x, block["mlp_norm"]), block, "widen"))
        x = x + linear(norm(hidden, block["hidden_norm"]), block, "shrink")
    head = params["classifier"]
    return norm(x[:, 0], params["norm"]) @ head["kernel"] + head["bias"]


def test_a_vision_transformer_is_its_layout_in_numpy() -> None:
    params = jax.tree.map(
        lambda leaf: (leaf + 0.3 * RNG.normal(size=leaf.shape)).astype(np.float32), initial("ste")
    )
    logits = jax.jit(small("ste").apply)({"params": params}, IMAGES)
    # In float64 an input of a sign may fall on the other side of 0: few of them may differ.
    expected = network(IMAGES.astype(np.float64), jax.tree.map(np.float64, params))
    assert logits.shape == (6, 3)
    close = np.isclose(logits, expected, rtol=1e-3, atol=1e-3).all(-1)
    assert close.mean() > 0.6


# --- sizes ----------------------------------------------------------------------------------


def by_formula(width: int, depth: int, patch: int, image: tuple, classes: int) -> tuple[int, int]:
    """Binary and real parameters of a transformer whose hidden layers are 4 times as wide."""
    height, across, channels = image
    binary = depth * (4 * width**2 + 2 * 4 * width**2)
    # A scale and a bias: in front of attention, project, widen and shrink; behind each of six.
    norms = depth * 2 * ((3 * width + 4 * width) + (5 * width + 4 * width)) + 2 * width
    tokens = (height // patch) * (across // patch) + 1
    ends = (patch**2 * channels + 1) * width + width + tokens * width + (width + 1) * classes
    return binary, norms + ends


@pytest.mark.parametrize(
    ("name", "image", "classes", "sizes", "expected"),
    [
        ("vit_tiny", (32, 32, 3), 10, (192, 12, 4), (5_308_416, 98_122)),
        ("vit_digits", (8, 8, 1), 10, (64, 2, 2), (98_304, 6_346)),
    ],
)
def test_parameter_counts_are_exact(name, image, classes, sizes, expected) -> None:
    width, depth, patch = sizes
    assert by_formula(width, depth, patch, image, classes) == expected
    for method, count in (
        ("ste", ParameterCount(*expected, 0)),
        ("full_precision", ParameterCount(0, sum(expected), 0)),
    ):
        model = build(name, num_classes=classes, method=method)
        shapes = jax.eval_shape(lambda m=model: m.init(KEY, jnp.zeros((1, *image))))
        assert shapes.keys() == {"params"}
        assert count_parameters(shapes["params"]) == count


def test_embeddings_norms_and_head_are_real_and_the_six_linear_layers_binary() -> None:
    labels = group_labels(initial("ste"))
    for name, parts in labels["block1"].items():
        expected = {"latent_kernel": "binary"} if name in LINEAR else None
        assert parts == expected or set(parts.values()) == {"norm"}
    ends = ("stem", "class_token", "position_embedding", "classifier")
    assert {leaf for name in ends for leaf in jax.tree.leaves(labels[name])} == {"real"}


# --- training -------------------------------------------------------------------------------


def weights_of(model, params, **kwargs) -> list[tuple]:
    """(latent, effective) weights of each binary layer."""
    apply = functools.partial(model.apply, mutable=["effective_weights"], **kwargs)
    _, sown = jax.jit(apply)({"params": params}, IMAGES)
    return [
        (params[block][name]["latent_kernel"], np.asarray(layer["kernel"][0]))
        for block, layers in sown["effective_weights"].items()
        for name, layer in layers.items()
    ]


@pytest.mark.slow
def test_weights_are_soft_in_training_and_two_valued_at_inference() -> None:
    model, params = small("bnn_plus_plus"), initial("ste")
    inference = weights_of(model, params)
    assert len(inference) == len(LINEAR)
    for latent, effective in inference:
        scale = np.mean(np.abs(latent))
        np.testing.assert_allclose(effective, scale * np.where(latent > 0, 1, -1), rtol=1e-6)
    for _, effective in weights_of(model, params, train=True, progress=0.2):
        assert len(np.unique(np.abs(effective))) > 10


@jax.value_and_grad
def loss_and_gradient(params, progress):
    """Of one batch."""
    logits, _ = small("bnn_plus_plus").apply(
        {"params": params}, IMAGES, train=True, progress=progress, mutable=["batch_stats"]
    )
    labels = np.arange(len(IMAGES)) % 3
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@pytest.mark.slow
def test_it_overfits_a_batch() -> None:
    optimizer, steps = optax.adam(1e-2), 40

    @jax.jit
    def step(params, state, progress):
        value, gradient = loss_and_gradient(params, progress)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    params = initial("ste")  # the same for both
    state, losses = optimizer.init(params), []
    for t in range(steps):
        params, state, value = step(params, state, 0.3 * t / steps)
        losses.append(float(value))
    assert losses[0] > 0.7
    assert losses[-1] < 0.25 * losses[0]


@pytest.mark.slow
def test_gradients_reach_every_latent_weight_and_every_real_parameter() -> None:
    _, gradient = jax.jit(loss_and_gradient)(initial("ste"), 0.0)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        moved = np.mean(np.asarray(leaf) != 0)
        assert moved > 0.5, path


def test_logits_stay_float32_in_sixteen_bits() -> None:
    model = build("vit_digits", num_classes=10, method="ste", dtype=jnp.bfloat16)
    images = jnp.zeros((2, 8, 8, 1))
    variables = jax.eval_shape(lambda: model.init(KEY, images))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    assert jax.eval_shape(model.apply, variables, images).dtype == jnp.float32


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(34, 32, 3), (32, 30, 3)])
def test_images_that_patches_do_not_divide_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"do not fit vit_tiny.*patches of 4 by 4.*multiples of 4"):
        check_image_shape("vit_tiny", shape)
    model = build("vit_tiny", num_classes=2, method="ste")
    with pytest.raises(ValueError, match=r"patches of 4 do not divide.*patch_px"):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *shape))))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    model = VisionTransformer(2, make_method("ste"), width=10, num_heads=4, depth=1)
    with pytest.raises(ValueError, match=r"4 heads do not divide a width of 10.*width of 8"):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 8, 8, 1))))
