"""What the networks compute: layout, statistics, one compilation, and what they refuse."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import make_method
from fda_jax.models import (
    MODELS,
    AlexNet,
    ResNet,
    VGGSmall,
    VisionTransformer,
    build,
    check_image_shape,
)
from fda_jax.models.common import batch_norm
from fda_jax.models.resnet import Block, option_a

KEY = jax.random.key(0)
STE = make_method("ste")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomized(shapes, seed: int = 0):
    """Random values for a tree of shapes; variances stay positive."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (
            rng.uniform(0.1, 1, leaf.shape).astype(np.float32)
            * (1 if leaf.ndim < 2 else rng.choice([-1, 1], leaf.shape).astype(np.float32))
        ),
        shapes,
    )


def conv(a: np.ndarray, w: np.ndarray, stride: int = 1) -> np.ndarray:
    side = len(w)
    padded = np.pad(a.astype(np.float64), ((0, 0), *((side // 2, side // 2),) * 2, (0, 0)))
    height, width = a.shape[1:3]
    full = sum(
        padded[:, i : i + height, j : j + width] @ w[i, j] for i, j in np.ndindex(side, side)
    )
    return full[:, ::stride, ::stride]


def windows(x: np.ndarray, side: int, stride: int, fill: float, function) -> np.ndarray:
    """`function` of each window, which has `fill` where it sticks out behind the image."""
    behind = (0, side)
    padded = np.pad(x, ((0, 0), behind, behind, (0, 0)), constant_values=fill)
    rows, columns = (-(-size // stride) for size in x.shape[1:3])
    y = np.empty((len(x), rows, columns, x.shape[3]))
    for i, j in np.ndindex(rows, columns):
        top, left = stride * i, stride * j
        y[:, i, j] = function(padded[:, top : top + side, left : left + side])
    return y


def signs(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, 1.0, -1.0)


def binary_conv(a: np.ndarray, params, stride: int = 1) -> np.ndarray:
    w = params["latent_kernel"]
    return conv(signs(a), signs(w) * np.abs(w).mean(), stride)


def norm(x: np.ndarray, params, statistics) -> np.ndarray:
    scaled = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    return scaled * params["scale"] + params["bias"]


def prelu(x: np.ndarray, params) -> np.ndarray:
    return np.where(x > 0, x, params["negative_slope"] * x)


def block(
    x: np.ndarray, params, statistics, convs: int, stride: int, features: int, *, last: bool = False
) -> np.ndarray:
    """A block, with a nonlinearity behind each convolution or, at `last`, behind the sum."""
    new = features - x.shape[-1]
    if "shortcut" in params:
        shortcut = windows(x, 2, 2, np.nan, lambda values: np.nanmean(values, (1, 2)))
        shortcut = shortcut @ params["shortcut"]["kernel"][0, 0]
        shortcut = norm(shortcut, params["shortcut_norm"], statistics["shortcut_norm"])
    else:
        shortcut = np.pad(x[:, ::stride, ::stride], [(0, 0)] * 3 + [(new // 2, new - new // 2)])
    for i in range(1, convs + 1):
        x = binary_conv(x, params[f"conv{i}"], stride if i == 1 else 1)
        x = x if last else prelu(x, params[f"prelu{i}"])
        x = norm(x, params[f"norm{i}"], statistics[f"norm{i}"])
    return prelu(x + shortcut, params["prelu1"]) if last else x + shortcut


@pytest.mark.parametrize("convs", [1, 2])
def test_a_residual_network_is_its_layout_in_numpy(convs: int) -> None:
    model = ResNet(4, STE, stage_sizes=(1, 1), widths=(2, 5), convs_per_shortcut=convs)
    images = normal(2, 5, 4, 3)
    variables = randomized(jax.eval_shape(lambda: model.init(KEY, images)))
    params, statistics = variables["params"], variables["batch_stats"]
    x = conv(images, params["stem"]["kernel"])
    x = norm(x, params["stem_norm"], statistics["stem_norm"])
    for stage, features in ((1, 2), (2, 5)):
        for number in range(1, 2 // convs + 1):
            name = f"stage{stage}_block{number}"
            stride = 2 if stage == 2 and number == 1 else 1
            x = block(x, params[name], statistics[name], convs, stride, features)
    x = np.maximum(x, 0).mean((1, 2))
    logits = x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images), logits, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("network", "height", "width"),
    [("resnet18", 32, 48), ("resnet18", 37, 33), ("resnet18_reactnet", 32, 48)],
)
def test_the_network_of_imagenet_is_its_layout_in_numpy(
    network: str, height: int, width: int
) -> None:
    model = build(network, num_classes=4, method=STE).clone(
        stage_sizes=(1, 1, 1, 1), widths=(2, 3, 4, 6)
    )
    images = normal(2, height, width, 3)
    variables = randomized(jax.eval_shape(lambda: model.init(KEY, images)))
    params, statistics = variables["params"], variables["batch_stats"]
    x = conv(images, params["stem"]["kernel"], 2)
    x = norm(x, params["stem_norm"], statistics["stem_norm"])
    border = np.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), constant_values=-np.inf)
    x = windows(border, 3, 2, -np.inf, lambda values: values.max((1, 2)))
    x = x[:, : -(-height // 4), : -(-width // 4)]
    for stage, features in enumerate((2, 3, 4, 6), start=1):
        for number in (1, 2):
            name = f"stage{stage}_block{number}"
            changes = stage > 1 and number == 1
            assert ("shortcut" in params[name]) == changes
            stride, last = 2 if changes else 1, network == "resnet18_reactnet"
            x = block(x, params[name], statistics[name], 1, stride, features, last=last)
    # 1/32 of the image, rounded up.
    assert x.shape[1:3] == (-(-height // 32), -(-width // 32))
    logits = x.mean((1, 2)) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images), logits, rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [  # narrower noise modules have a single unit, which may be dead
        ("resnet18", {"stage_sizes": (1, 1), "widths": (16, 8)}),
        ("resnet18_reactnet", {"stage_sizes": (1, 1), "widths": (16, 8)}),
        ("alexnet", {"widths": (16, 8, 12, 16, 16), "units": (16, 16)}),
    ],
)
def test_the_gradient_reaches_every_parameter_of_the_networks_of_imagenet(name, sizes) -> None:
    model = build(name, num_classes=4, method="fda").clone(**sizes)
    side = 2 * MODELS[name].min_side
    images = normal(8, side, side, 3)
    variables = jax.jit(model.init)(KEY, images)

    def loss(params):
        changed = {**variables, "params": params}
        logits, _ = model.apply(changed, images, train=True, progress=0.0, mutable=["batch_stats"])
        return jnp.sum(jnp.square(logits - jnp.arange(4.0)))

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not np.any(leaf) or not np.all(np.isfinite(leaf))
    ]
    assert still == []


def test_a_vgg_network_is_its_layout_in_numpy() -> None:
    model = VGGSmall(4, STE, widths=(2, 3, 4))
    images = normal(2, 8, 8, 3)
    variables = randomized(jax.eval_shape(lambda: model.init(KEY, images)))
    params, statistics = variables["params"], variables["batch_stats"]

    def hard_tanh_of_norm(x: np.ndarray, name: str) -> np.ndarray:
        return np.clip(norm(x, params[name], statistics[name]), -1, 1)

    x = hard_tanh_of_norm(conv(images, params["stem"]["kernel"]), "stem_norm")
    for i in range(2, 7):
        x = binary_conv(x, params[f"conv{i}"])
        if i % 2 == 0:
            x = x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max((2, 4))
        x = hard_tanh_of_norm(x, f"norm{i}")
    logits = x.reshape(2, -1) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images), logits, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(("height", "width"), [(63, 96), (95, 70)])
def test_alexnet_is_its_layout_in_numpy(height: int, width: int) -> None:
    model = AlexNet(3, STE, widths=(4, 5, 3, 6, 2), units=(7, 8))
    images = normal(2, height, width, 3)
    variables = randomized(jax.eval_shape(lambda: model.init(KEY, images)))
    params, statistics = variables["params"], variables["batch_stats"]

    def normed(x: np.ndarray, name: str) -> np.ndarray:
        return norm(x, params[name], statistics[name])

    def pool(x: np.ndarray) -> np.ndarray:
        whole = windows(x, 3, 2, -np.inf, lambda values: values.max((1, 2)))
        return whole[:, : (x.shape[1] - 1) // 2, : (x.shape[2] - 1) // 2]

    # Two pixels of border where `conv` has five: the result begins three pixels later.
    w = params["stem"]["kernel"]
    x = conv(images, w)[:, 3 : height - 3 : 4, 3 : width - 3 : 4]
    x = pool(np.maximum(normed(x, "stem_norm"), 0))
    x = np.clip(normed(x, "norm1"), -1, 1)
    for i in (2, 3, 4, 5):
        x = binary_conv(x, params[f"conv{i}"])
        x = np.clip(normed(pool(x) if i in (2, 5) else x, f"norm{i}"), -1, 1)
    x = x.reshape(2, -1)
    for i in (6, 7):
        latent = params[f"dense{i}"]["latent_kernel"]
        x = normed(signs(x) @ (signs(latent) * np.abs(latent).mean()), f"norm{i}")
        x = np.clip(x, -1, 1) if i == 6 else np.maximum(x, 0)
    logits = x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, images), logits, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    ("model", "last_norm"),
    [
        (VGGSmall(3, "hwgq", widths=(2, 3, 4)), "stem_norm"),
        (AlexNet(3, "hwgq", widths=(4, 5, 3, 6, 2), units=(7, 8)), "norm1"),
    ],
    ids=["vgg", "alexnet"],
)
def test_the_first_binary_layer_sees_all_levels_of_a_method_without_nonlinearity(
    model, last_norm: str
) -> None:
    images = normal(2, 64, 64, 3)
    variables = randomized(jax.eval_shape(lambda: model.init(KEY, images)))
    kept = ["intermediates"]

    @jax.jit
    def seen(variables):
        names = (last_norm, "activation")
        return model.apply(
            variables, images, capture_intermediates=lambda m, _: m.name in names, mutable=kept
        )[1]["intermediates"]

    found = seen(variables)
    normed, levels = found[last_norm], found["conv2"]["activation"]
    a = np.asarray(normed["__call__"][0], np.float64)
    # HWGQ's levels of two bits: 0, and above it the nearest of three steps.
    nearest = 0.538 * np.clip(np.round(a / 0.538), 1, 3)
    np.testing.assert_allclose(
        levels["__call__"][0], np.where(a > 0, nearest, 0), rtol=1e-6, atol=1e-6
    )
    assert np.any(nearest > 1.6)


@pytest.mark.parametrize("name", ["vgg_small", "alexnet"])
@pytest.mark.parametrize("method", ["bireal_prelu", "reactnet", "adabin"])
def test_a_trained_nonlinearity_stands_behind_binary_layers_alone(name: str, method: str) -> None:
    model = build(name, num_classes=2, method=method)
    side = 2 * MODELS[name].min_side
    params = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, side, side, 3))))["params"]
    layers = sum("latent_kernel" in layer for layer in params.values())
    assert sum("negative_slope" in layer for layer in params.values()) == layers


@pytest.mark.parametrize(("stride", "features"), [(1, 3), (2, 3), (2, 8), (2, 6), (3, 4)])
def test_the_shortcut_picks_pixels_and_adds_zero_channels_on_both_sides(
    stride: int, features: int
) -> None:
    x = normal(2, 5, 4, 3)
    before = (features - 3) // 2
    expected = np.zeros((2, -(-5 // stride), -(-4 // stride), features), np.float32)
    for i, j in np.ndindex(expected.shape[1:3]):
        expected[:, i, j, before : before + 3] = x[:, i * stride, j * stride]
    np.testing.assert_array_equal(option_a(x, features, stride), expected)


@pytest.mark.parametrize("convs", [1, 2])
def test_a_block_whose_weights_are_zero_is_its_shortcut(convs: int) -> None:
    # The scale of zero weights is zero, so nothing but the shortcut is left.
    layer = Block(6, 2, convs, STE, batch_norm(jnp.float32, None, train=False))
    x = normal(2, 4, 4, 3)
    call = functools.partial(layer.apply, train=False, progress=1.0)
    variables = jax.eval_shape(lambda: layer.init(KEY, x, train=False, progress=1.0))
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: np.full(leaf.shape, path[-1].key in ("scale", "var"), np.float32),
        variables,
    )
    np.testing.assert_array_equal(jax.jit(call)(variables, x), option_a(x, 6, 2))


@pytest.fixture(scope="module")
def network():
    """The smallest network of the table with the method that has most to go wrong."""
    model = build("resnet_digits", num_classes=3, method="fda")
    images = normal(4, 4, 4, 1)
    return model, randomized(jax.eval_shape(lambda: model.init(KEY, images))), images


@pytest.fixture(scope="module")
def train(network):
    model = network[0]

    def step(variables, images, progress):
        return model.apply(
            variables, images, train=True, progress=progress, mutable=["batch_stats"]
        )

    chex.clear_trace_counter()
    return jax.jit(chex.assert_max_traces(step, n=1))


@pytest.fixture(scope="module")
def evaluate(network):
    apply = functools.partial(network[0].apply, train=False, mutable=["batch_stats"])
    return jax.jit(apply)


def test_one_compilation_serves_a_whole_run(network, train) -> None:
    _, variables, images = network
    logits = [train(variables, images, progress)[0] for progress in (0.0, 0.25, 0.5, 1.0)]
    # The noise of the forward pass does change with progress.
    assert np.max(np.abs(logits[0] - logits[-1])) > 0


def test_training_updates_the_running_statistics_with_momentum_0_9(network, train) -> None:
    _, variables, images = network
    statistics = train(variables, images, 0.3)[1]["batch_stats"]
    old = variables["batch_stats"]
    chex.assert_trees_all_equal_shapes_and_dtypes(statistics, old)
    for new, before in zip(jax.tree.leaves(statistics), jax.tree.leaves(old), strict=True):
        assert np.any(new != before)
    seen = conv(images, variables["params"]["stem"]["kernel"]).mean((0, 1, 2))
    np.testing.assert_allclose(
        statistics["stem_norm"]["mean"], 0.9 * old["stem_norm"]["mean"] + 0.1 * seen, rtol=1e-4
    )


def test_evaluation_changes_nothing_and_is_deterministic(network, evaluate) -> None:
    _, variables, images = network
    first, updates = evaluate(variables, images)
    np.testing.assert_array_equal(first, evaluate(variables, images)[0])
    chex.assert_trees_all_equal(updates["batch_stats"], variables["batch_stats"])
    assert first.dtype == jnp.float32
    assert first.shape == (4, 3)


def test_the_logits_of_an_image_do_not_depend_on_its_batch(network, evaluate) -> None:
    _, variables, images = network
    logits = evaluate(variables, images)[0]
    mixed = np.stack([images[2], images[0], 9 * images[1], images[2]])
    moved = evaluate(variables, mixed)[0][1]
    np.testing.assert_allclose(moved, logits[0], rtol=1e-5, atol=1e-5)
    assert np.max(np.abs(logits[0] - logits[2])) > 1e-3


def test_inference_needs_no_progress_and_no_noise_module(network, evaluate) -> None:
    model, variables, images = network
    default = evaluate(variables, images)[0]
    broken = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf * np.nan if path[-1].key in ("w1", "w2") else leaf, variables
    )
    assert np.any([np.isnan(leaf).any() for leaf in jax.tree.leaves(broken)])
    explicit = jax.jit(lambda v, p: model.apply(v, images, train=False, progress=p))
    for progress in (1.0, 0.0):
        np.testing.assert_allclose(explicit(broken, progress), default, rtol=1e-6, atol=1e-6)


def test_training_at_progress_1_uses_pure_signs(network, train, evaluate) -> None:
    # With the running statistics of the batch itself, training and inference then agree.
    _, variables, images = network
    logits, updates = train(variables, images, 1.0)
    batch = jax.tree.map(
        lambda new, old: (new - np.float32(0.9) * old) / np.float32(0.1),
        dict(updates["batch_stats"]),
        dict(variables["batch_stats"]),
    )
    inference = evaluate({**variables, "batch_stats": batch}, images)[0]
    np.testing.assert_allclose(inference, logits, rtol=0.02, atol=0.02 * np.max(np.abs(logits)))


def test_bfloat16_networks_keep_float32_parameters_and_logits() -> None:
    images = normal(2, 4, 4, 1)
    model = build("resnet_digits", num_classes=3, method="fda", dtype=jnp.bfloat16)
    variables = jax.eval_shape(lambda: model.init(KEY, images))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    logits = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
    assert logits.dtype == jnp.float32
    text = str(jax.make_jaxpr(lambda v: model.apply(v, images, train=False))(variables))
    convolutions = [line for line in text.splitlines() if "conv_general_dilated[" in line]
    assert len(convolutions) == 5
    assert all(":bf16[" in line for line in convolutions)


def test_knobs_reach_the_method_of_the_network() -> None:
    model = build("resnet_digits", num_classes=3, method="fda", omega=0.25, noise="none")
    assert model.method == make_method("fda", omega=0.25, noise="none")
    assert build("resnet_digits", num_classes=3, method=STE).method is STE


@pytest.mark.parametrize(
    ("name", "knobs", "message"),
    [
        ("resnet21", {}, r"no network 'resnet21' \(did you mean 'resnet20'\?\)"),
        ("resnet20", {"method": "fdaa"}, r"no method 'fdaa' \(did you mean 'fda'\?\)"),
        ("resnet20", {"omegas": 1.0}, r"no knob 'omegas' \(did you mean 'omega'\?\)"),
        ("resnet20", {"num_classes": 1}, "num_classes is 1.*at least 2"),
        ("resnet20", {"num_classes": 10.0}, "num_classes is 10.0.*a whole number"),
        ("resnet20", {"num_classes": "10"}, "num_classes is .10..*a whole number"),
        ("resnet20", {"num_classes": 10, "real_layers": "*"}, "real_layers is .*: use a tuple"),
        ("resnet20", {"omega": -1.0}, r"omega is -1\.0"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_remedy(name, knobs, message) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **{"num_classes": 10, **knobs})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": (16, 32)}, r"stage_sizes is \(3, 3, 3\) and widths is \(16, 32\): give both"),
        ({"stage_sizes": (), "widths": ()}, r"stage_sizes is \(\).*a number for each stage"),
        ({"stage_sizes": (3, 0, 3)}, r"stage_sizes is \(3, 0, 3\).*at least 1"),
        ({"widths": [32, 16, 16]}, r"widths is \(32, 16, 16\).*narrower.*projection=True"),
        ({"convs_per_shortcut": 3}, "convs_per_shortcut is 3: use 1 or 2"),
    ],
)
def test_stages_that_make_no_residual_network_are_refused(settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(num_classes=10, method="ste", **settings)


def test_a_projection_may_narrow_a_residual_network() -> None:
    model = ResNet(2, "ste", stage_sizes=(1, 1), widths=(16, 8), projection=True)
    shapes = jax.eval_shape(lambda: model.init_with_output(KEY, jnp.zeros((1, 8, 8, 1)))[0])
    assert shapes.shape == (1, 2)


@pytest.mark.parametrize("name", MODELS)
def test_a_batch_of_no_images_has_no_logits(name) -> None:
    """The last one of a data set whose size the batch divides, for instance."""
    side = MODELS[name].min_side
    model = build(name, method="fda", num_classes=3, noise_activation_axis="pixels")
    # A block of each width is all there is.
    if isinstance(model, ResNet):
        model = model.clone(stage_sizes=(1,) * len(model.stage_sizes))
    if isinstance(model, VisionTransformer):
        model = model.clone(depth=1)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))

    def logits(variables, images):
        training = {"train": True, "progress": 0.5, "mutable": ["batch_stats"]}
        model.apply(variables, images, **training)
        return model.apply(variables, images)

    assert jax.eval_shape(logits, variables, jnp.zeros((0, side, side, 3))).shape == (0, 3)


@pytest.mark.parametrize("name", MODELS)
def test_images_of_a_wrong_rank_or_type_are_refused_with_the_remedy(name: str) -> None:
    model = build(name, num_classes=2, method="ste")
    with pytest.raises(ValueError, match=r"shape \(8, 8, 1\).*images\[None\]"):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((8, 8, 1))))
    with pytest.raises(ValueError, match=r"uint8.*fda_jax\.data\.normalize"):
        jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 8, 8, 1), jnp.uint8)))


@pytest.mark.parametrize("name", MODELS)
def test_images_too_small_for_a_network_are_refused_and_the_smallest_run(name: str) -> None:
    side = MODELS[name].min_side
    check_image_shape(name, (side, side, 1))
    model = build(name, num_classes=2, method="ste")
    images = jnp.zeros((1, side, side, 1))
    logits = jax.eval_shape(lambda: model.init_with_output(KEY, images)[0])
    assert logits.shape == (1, 2)
    for shape in [(side - 1, 64, 3), (64, side - 1, 3), (side, side)]:
        with pytest.raises(ValueError, match=f"do not fit {name}.*at least {side} pixels: choose"):
            check_image_shape(name, shape)


def test_an_unknown_network_has_no_image_shape() -> None:
    with pytest.raises(ValueError, match="did you mean 'vgg_small'"):
        check_image_shape("vgg_smal", (32, 32, 3))


def test_the_table_of_networks_is_read_only() -> None:
    with pytest.raises(TypeError):
        MODELS["mine"] = MODELS["resnet20"]
