"""How many parameters each network holds: exact numbers, derived here by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fda_jax.layers import METHODS
from fda_jax.models import MODELS, ParameterCount, build, count_parameters
from fda_jax.models.summary import GROUPS, group_labels, parameter_group

KEY = jax.random.key(0)
# (height, width, channels) and classes: CIFAR-10, 8x8 digits, and ImageNet.
CIFAR, DIGITS, IMAGENET = ((32, 32, 3), 10), ((8, 8, 1), 10), ((224, 224, 3), 1000)
# Binary layers as (channels in, channels out); convolutions of 3x3 pixels where `TAPS` has no more.
RESNET20 = (
    [(16, 16)] * 6 + [(16, 32)] + [(32, 32)] * 5 + [(32, 64)] + [(64, 64)] * 5,
    CIFAR,
)
RESNET8 = ([(16, 16)] * 2 + [(16, 32), (32, 32), (32, 64), (64, 64)], CIFAR)


def resnet_of_imagenet(*convs: int) -> tuple:
    """Layers of a network with so many convolutions in each of the four stages."""
    widths = (64, 128, 256, 512)
    wider = zip((64, *widths), widths, convs, strict=False)
    stages = ([(before, width)] + [(width, width)] * (size - 1) for before, width, size in wider)
    return [layer for stage in stages for layer in stage], IMAGENET


RESNET18 = resnet_of_imagenet(4, 4, 4, 4)
RESNET34 = resnet_of_imagenet(6, 8, 12, 6)
RESNET_DIGITS = ([(32, 32)] * 2 + [(32, 64), (64, 64)], DIGITS)
VGG_SMALL = ([(128, 128), (128, 256), (256, 256), (256, 512), (512, 512)], CIFAR)
ALEXNET = (
    [(96, 256), (256, 384), (384, 384), (384, 256), (256 * 6 * 6, 4096), (4096, 4096)],
    IMAGENET,
)
TAPS = {"alexnet": [25, 9, 9, 9, 1, 1]}
OF_IMAGENET = ("resnet18", "resnet18_reactnet", "resnet34")
STEM_TAPS = {**dict.fromkeys(OF_IMAGENET, 49), "alexnet": 121}
LAYERS = {
    "resnet8": RESNET8,
    "resnet20": RESNET20,
    "resnet20_bireal": RESNET20,
    "resnet18": RESNET18,
    "resnet18_reactnet": RESNET18,
    "resnet34": RESNET34,
    "resnet_digits": RESNET_DIGITS,
    "vgg_small": VGG_SMALL,
    "alexnet": ALEXNET,
}
# Weights of the binary convolutions; the rest; parameters of FDA's noise modules.
TABLE = {
    "resnet8": (73_728, 1_568, 18_240),
    "resnet20": (267_264, 2_476, 74_304),
    "resnet20_bireal": (267_264, 2_476, 74_304),
    "resnet18": (10_985_472, 704_056, 2_907_392),
    "resnet18_reactnet": (10_985_472, 704_056, 2_907_392),
    "resnet34": (21_086_208, 711_496, 5_783_296),
    "resnet_digits": (73_728, 1_390, 18_944),
    "vgg_small": (4_571_136, 88_970, 1_091_584),
    "alexnet": (58_236_928, 4_151_176, 7_458_432),
}


@functools.cache
def shapes(name: str, method: str):
    (image, classes) = LAYERS[name][1]
    model = build(name, num_classes=classes, method=method)
    return jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *image))))["params"]


def by_arithmetic(name: str) -> tuple[int, int, int]:
    convs, (image, classes) = LAYERS[name]
    taps = TAPS.get(name, [9] * len(convs))
    binary = sum(k * c_in * c_out for k, (c_in, c_out) in zip(taps, convs, strict=True))
    first, last = convs[0][0], convs[-1][1]
    stem = STEM_TAPS.get(name, 9)
    # The stem has no bias; a batch normalisation has a scale and a bias for each channel.
    real = stem * image[2] * first + 2 * first + sum(2 * c_out for _, c_out in convs)
    if name == "vgg_small":
        # The image is halved three times and then flattened.
        real += last * (image[0] // 8) * (image[1] // 8) * classes + classes
    elif name == "alexnet":
        # There is a second normalisation behind the stem.
        real += 2 * first + last * classes + classes
    else:
        # One PReLU slope a convolution; the classifier sees the mean over pixels.
        real += len(convs) + last * classes + classes
    if name in OF_IMAGENET:
        # A projection, a convolution of one pixel and its normalisation, where the width changes.
        real += sum(c_in * c_out + 2 * c_out for c_in, c_out in convs if c_in != c_out)

    def noise(d: int) -> int:
        return 2 * d * (d // 64 if d >= 64 else d // 4)

    pairs = zip(taps, convs, strict=True)
    return binary, real, sum(noise(k * c_in) + noise(c_in) for k, (c_in, _) in pairs)


def test_every_network_is_in_the_table() -> None:
    transformers = {name for name in MODELS if name.startswith("vit_")}
    assert TABLE.keys() == LAYERS.keys() == MODELS.keys() - transformers


@pytest.mark.parametrize("name", TABLE)
def test_the_table_follows_from_the_list_of_layers(name: str) -> None:
    assert TABLE[name] == by_arithmetic(name)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("method", ["fda", "ste", "full_precision"])
def test_parameter_counts_are_exact(name: str, method: str) -> None:
    binary, real, noise = TABLE[name]
    expected = {
        "fda": ParameterCount(binary, real, noise),
        "ste": ParameterCount(binary, real, 0),
        "full_precision": ParameterCount(0, binary + real, 0),
    }
    assert count_parameters(shapes(name, method)) == expected[method]


@pytest.mark.parametrize(
    # As torchvision's documentation gives them.
    ("name", "weights", "convs"),
    [("resnet18", 11_689_512, 16), ("resnet34", 21_797_672, 32)],
)
def test_a_resnet_has_as_many_weights_as_the_real_one_and_a_slope_a_convolution(
    name: str, weights: int, convs: int
) -> None:
    count = count_parameters(shapes(name, "ste"))
    assert count.binary + count.real == weights + convs


def test_alexnet_has_as_many_weights_as_another_librarys() -> None:
    # Larq Zoo's documentation gives its XNORNet 62,396,768 parameters: three for each channel that
    # is normalised (mean, variance, bias), where ours trains two, and no bias in the last layer.
    count = count_parameters(shapes("alexnet", "ste"))
    channels = 96 + 96 + 256 + 384 + 384 + 256 + 4096 + 4096
    assert count.binary + count.real == 62_396_768 - channels + 1000


@pytest.mark.parametrize("method", METHODS)
def test_every_method_initialises_a_network(method: str) -> None:
    params = shapes("resnet_digits", method)
    count = count_parameters(params)
    assert count.binary in (0, 73_728)
    # A method may bring or save real parameters of its own, a few for each channel.
    assert 73_728 + 1_386 <= count.binary + count.real <= 73_728 + 1_390 + 8 * 4 * 64
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name", TABLE)
def test_the_first_and_the_last_layer_are_real(name: str) -> None:
    params = shapes(name, "fda")
    assert params["stem"].keys() == {"kernel"}
    assert params["classifier"].keys() == {"kernel", "bias"}
    labels = group_labels(params)
    assert set(jax.tree.leaves(labels["stem"])) == {"real"}
    assert set(jax.tree.leaves(labels["classifier"])) == {"real"}
    # Nothing but them and the projections of shortcuts is a real convolution or matrix.
    others = {k: v for k, v in labels.items() if k not in ("stem", "classifier")}
    projections = [block["shortcut"] for block in others.values() if "shortcut" in block]
    assert projections == [{"kernel": "real"}] * (3 if name in OF_IMAGENET else 0)
    assert jax.tree.leaves(others).count("real") == len(projections)
    assert jax.tree.leaves(others).count("binary") == len(LAYERS[name][0])


@pytest.mark.parametrize(
    ("path", "group"),
    [
        (("stage1_block1", "conv1", "latent_kernel"), "binary"),
        (("stage1_block1", "conv1", "weight", "noise", "w1"), "noise"),
        (("stage1_block1", "conv1", "activation", "noise", "w2"), "noise"),
        (("stage1_block1", "norm1", "scale"), "norm"),
        (("stem_norm", "bias"), "norm"),
        (("stage2_block1", "shortcut_norm", "scale"), "norm"),
        (("stage2_block1", "shortcut", "kernel"), "real"),
        (("stage1_block1", "prelu1", "negative_slope"), "prelu"),
        (("stage1_block1", "rprelu1", "shift_in"), "prelu"),
        (("stage1_block1", "maxout2", "positive_slope"), "prelu"),
        (("stage1_block1", "conv1", "weight", "scale"), "quantizer"),
        (("stage1_block1", "conv1", "activation", "shift"), "quantizer"),
        (("stage1_block1", "conv1", "output", "scale"), "quantizer"),
        (("stage1_block1", "conv1", "activation", "middle"), "quantizer"),
        (("stage1_block1", "conv1", "activation", "alpha_logit"), "log"),
        (("stage1_block1", "conv1", "weight", "log_half_width"), "log"),
        (("stem", "kernel"), "real"),
        (("classifier", "bias"), "real"),
        (("kernel",), "real"),
    ],
)
def test_a_parameter_has_the_group_its_path_says(path: tuple[str, ...], group: str) -> None:
    assert parameter_group(path) == group
    assert group in GROUPS


def test_the_bireal_form_differs_in_shortcuts_alone() -> None:
    plain, bireal = shapes("resnet20", "fda"), shapes("resnet20_bireal", "fda")

    def sorted_shapes(params) -> list:
        return sorted(leaf.shape for leaf in jax.tree.leaves(params))

    def blocks(params) -> int:
        return sum("block" in name for name in params)

    assert sorted_shapes(plain) == sorted_shapes(bireal)
    assert (blocks(plain), blocks(bireal)) == (9, 18)
    assert np.all(["conv2" in block for name, block in plain.items() if "block" in name])
