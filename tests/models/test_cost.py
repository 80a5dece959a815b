"""What a summary counts: by another way of counting, by published figures, and for every method."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from fda_jax import models
from fda_jax.layers import METHODS, BinaryConv, BinaryDense, make_method
from fda_jax.models import ResNet, build, count_parameters, summarize

CIFAR, DIGITS, IMAGENET = ((32, 32, 3), 10), ((8, 8, 1), 10), ((224, 224, 3), 1000)
DATA = {
    **dict.fromkeys(("resnet8", "resnet20", "resnet20_bireal", "vgg_small", "vit_tiny"), CIFAR),
    **dict.fromkeys(("resnet_digits", "vit_digits"), DIGITS),
    **dict.fromkeys(("resnet18", "resnet18_reactnet", "resnet34", "alexnet"), IMAGENET),
}
QUICK = {"resnet20", "vit_digits"}
several = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in models.MODELS]
)
# Bits of weights and activations, and whether the latter are -1 and 1; else (1, 1, True).
OPERANDS = {
    "full_precision": (32, 32, False),
    "tbn": (1, 2, False),
    "hwgq": (1, 2, False),
    "abc_net": (1, 1, False),
    "adabin": (1, 1, False),
}
slowly = functools.partial(pytest.param, marks=pytest.mark.slow)
QUICK_METHODS = {"tbn", "full_precision"}


@functools.cache
def summary_of(name: str, method: str):
    shape, classes = DATA[name]
    return summarize(build(name, num_classes=classes, method=method), shape)


def by_layers(name: str) -> tuple[int, int]:
    """MACs of binary layers and of the others, from the shapes of outputs and kernels."""
    shape, classes = DATA[name]
    counts = {True: 0, False: 0}

    def look(call, args, kwargs, context):
        output = call(*args, **kwargs)
        layer = context.module
        if isinstance(layer, BinaryConv | BinaryDense | nn.Conv | nn.Dense):
            taps = math.prod(getattr(layer, "kernel_size", ()))
            is_binary = isinstance(layer, BinaryConv | BinaryDense)
            counts[is_binary] += output.size * taps * args[0].shape[-1]
        return output

    model = build(name, num_classes=classes, method="binarynet")
    with nn.intercept_methods(look):
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *shape))))
    if name.startswith("vit"):
        # Queries by keys, and what they weigh by values, for each pair of tokens.
        tokens = 1 + shape[0] * shape[1] // model.patch_px**2
        counts[False] += model.depth * 2 * tokens**2 * model.width
    return counts[True], counts[False]


@several
def test_macs_are_those_of_the_layers_shapes(name: str) -> None:
    summary = summary_of(name, "binarynet")
    assert (summary.binary_macs, summary.real_macs) == by_layers(name)
    assert summary.mixed_macs == 0
    assert summary.macs == summary.binary_macs + summary.real_macs
    assert summary.ace == summary.binary_macs + 32 * 32 * summary.real_macs


def test_resnet20_has_the_macs_that_follow_by_hand() -> None:
    # Nineteen times 32 x 32 x 16 x 16 x 9, but two of them halve the image; stem and classifier.
    conv = 32 * 32 * 16 * 16 * 9
    summary = summary_of("resnet20", "binarynet")
    assert summary.binary_macs == 16 * conv + 2 * conv // 2 == 40_108_032
    assert summary.real_macs == 32 * 32 * 3 * 16 * 9 + 64 * 10
    assert summary.ops == 443_008 + 40_108_032 / 64


@pytest.mark.parametrize(
    # Bi-Real Net (arXiv 1808.00278), its comparison of memory and FLOPs: FLOPs of the real network
    # and of the binary one, speedup, Mbit of the real network and of the binary one. FLOPs are cut
    # off, not rounded: the speedup, 11.06, is 1.814e9 over 1.640e8.
    ("name", "real_flops", "flops", "speedup", "real_mbit", "mbit"),
    [
        ("resnet18", 1.81e9, 1.63e8, 11.06, 374.1, 33.6),
        pytest.param("resnet34", 3.66e9, 1.93e8, 18.99, 697.3, 43.7, marks=pytest.mark.slow),
    ],
)
def test_bireal_nets_figures_come_out(name, real_flops, flops, speedup, real_mbit, mbit) -> None:
    summary = summary_of(name, "bireal")
    assert summary.macs == pytest.approx(real_flops, rel=0.003)
    assert summary.ops == pytest.approx(flops, rel=0.007)
    assert summary.macs / summary.ops == pytest.approx(speedup, abs=0.005)
    # They count parameters alone, a bit for each binary one.
    assert 32 * summary.parameters / 1e6 == pytest.approx(real_mbit, rel=1e-3)
    assert (32 * summary.real + summary.binary) / 1e6 == pytest.approx(mbit, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet20", "alexnet"])
def test_pytorch_counts_as_many(name: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch, which counts too, is missing")
    from torch.utils.flop_counter import FlopCounterMode

    def conv(c_in, c_out, side, stride=1, padding=None):
        padding = side // 2 if padding is None else padding
        return torch.nn.Conv2d(c_in, c_out, side, stride, padding, bias=False)

    class Block(torch.nn.Module):
        def __init__(self, c_in, c_out, projects):
            super().__init__()
            self.stride = 2 if c_in != c_out else 1
            self.first = conv(c_in, c_out, 3, self.stride)
            self.second = conv(c_out, c_out, 3)
            self.shortcut = conv(c_in, c_out, 1) if projects and self.stride == 2 else None

        def forward(self, x):
            pooled = torch.nn.functional.avg_pool2d(x, self.stride)
            y = self.second(self.first(x))
            return y if self.shortcut is None else y + self.shortcut(pooled)

    nets = {
        "resnet20": lambda: [conv(3, 16, 3), *blocks((16, 32, 64), 3, False)],
        "resnet18": lambda: [
            conv(3, 64, 7, 2),
            torch.nn.MaxPool2d(3, 2, 1),
            *blocks((64, 128, 256, 512), 2, True),
        ],
        "alexnet": lambda: [
            conv(3, 96, 11, 4, 2),
            torch.nn.MaxPool2d(3, 2),
            conv(96, 256, 5),
            torch.nn.MaxPool2d(3, 2),
            conv(256, 384, 3),
            conv(384, 384, 3),
            conv(384, 256, 3),
            torch.nn.MaxPool2d(3, 2),
            torch.nn.Flatten(),
            torch.nn.Linear(256 * 36, 4096),
            torch.nn.Linear(4096, 4096),
            torch.nn.Linear(4096, 1000),
        ],
    }

    def blocks(widths, size, projects):
        made = [
            Block(before if i == 0 else width, width, projects)
            for before, width in zip((widths[0], *widths), widths, strict=False)
            for i in range(size)
        ]
        head = torch.nn.Linear(widths[-1], 1000 if projects else 10)
        return [*made, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), head]

    (height, width, channels), _ = DATA[name]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        torch.nn.Sequential(*nets[name]())(torch.zeros(1, channels, height, width))
    summary = summary_of(name, "full_precision")
    assert 2 * summary.macs == counter.get_total_flops()
    assert summary.real_macs == summary.macs


@pytest.mark.parametrize(
    "method",
    [pytest.param(m, marks=() if m in QUICK_METHODS else pytest.mark.slow) for m in METHODS],
)
def test_every_method_is_told_as_it_is(method: str) -> None:
    model = ResNet(stage_sizes=(1,), widths=(8,), num_classes=3, method=make_method(method))
    summary = summarize(model, (8, 8, 1))
    weight_bits, activation_bits, signs = OPERANDS.get(method, (1, 1, True))
    hidden = [layer for layer in summary.layers if layer.kind == "BinaryConv"]
    assert len(hidden) == 2
    for layer in hidden:
        assert (layer.weight_bits, layer.activation_bits) == (weight_bits, activation_bits)
        assert layer.macs == 64 * 8 * 8 * 9
        assert layer.ace == layer.macs * weight_bits * activation_bits
    kind = "binary_macs" if signs else "real_macs" if weight_bits == 32 else "mixed_macs"
    assert getattr(summary, kind) >= 2 * 64 * 8 * 8 * 9
    assert summary.binary_macs == 2 * 64 * 8 * 8 * 9 * signs
    assert summary.counts_bits == signs
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    count = count_parameters(variables["params"])
    assert (summary.binary, summary.real, summary.training_only) == (
        count.binary,
        count.real,
        count.training_only,
    )


@pytest.mark.parametrize(
    ("knobs", "weight_bits", "activation_bits", "binary"),
    [
        ({"method": "binaryconnect", "activations": "real"}, 1, 32, True),
        slowly({"method": "abc_net", "weight_bases": 4, "activation_bases": 3}, 3, 2, True),
        ({"method": "dorefa", "weight_bits": 2, "activation_bits": 8}, 2, 8, True),
        # A table of 256 values a filter is none: the file holds float32.
        slowly({"method": "dorefa", "weight_bits": 8, "activation_bits": 1}, 32, 1, False),
        slowly({"method": "dorefa", "activation_levels": "unsigned"}, 1, 1, True),
        slowly({"method": "reactnet", "weights": "real"}, 32, 1, False),
    ],
)
def test_operands_of_other_bits_are_no_binary_macs(
    knobs, weight_bits, activation_bits, binary
) -> None:
    model = ResNet(stage_sizes=(1,), widths=(8,), num_classes=3, method=make_method(**knobs))
    summary = summarize(model, (8, 8, 1))
    layer = next(layer for layer in summary.layers if layer.kind == "BinaryConv")
    assert (layer.weight_bits, layer.activation_bits) == (weight_bits, activation_bits)
    assert layer.mixed_macs == layer.macs == 64 * 8 * 8 * 9
    assert layer.binary == (8 * 8 * 9 if binary else 0)
    assert summary.binary_macs == 0


def test_what_is_computed_in_16_bits_counts_as_such() -> None:
    model = build("resnet_digits", num_classes=10, method="ste", dtype=jnp.bfloat16)
    summary = summarize(model, (8, 8, 1))
    layers = {layer.name: layer for layer in summary.layers}
    assert (layers["stem"].weight_bits, layers["classifier"].weight_bits) == (16, 32)
    assert layers["stem"].ace == 16 * 16 * layers["stem"].macs
    # Not so the file.
    assert layers["stem"].bytes_packed == 4 * layers["stem"].real


class Loops(nn.Module):
    """Real products within what JAX calls: a loop, a branch, a rematerialised layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.remat(BinaryConv)(4, method="binarynet", name="again")(x)
        x = nn.Conv(4, (3, 3), feature_group_count=2, name="groups")(x).mean((1, 2))
        matrix = self.param("matrix", nn.initializers.ones, (4, 4))
        nn.Dense(7, name="unused")(x)
        x, _ = jax.lax.scan(lambda x, _: (x @ matrix, None), x, length=5)
        return jax.lax.cond(x.sum() > 0, lambda x: x @ matrix, lambda x: x, x)


def test_products_within_loops_and_branches_are_found() -> None:
    layers = {layer.name: layer for layer in summarize(Loops(), (8, 8, 1)).layers}
    assert layers["again"].binary_macs == 64 * 9 * 1 * 4
    assert layers["groups"].real_macs == 64 * 9 * 2 * 4
    assert layers[""].real_macs == (5 + 1) * 16
    assert (layers["unused"].macs, layers["unused"].training_only) == (0, 4 * 7 + 7)
    assert (layers[""].real, layers[""].kind) == (16, "Loops")


def test_the_table_lines_up_and_has_every_layer() -> None:
    summary = summary_of("resnet20", "binarynet")
    layers, totals = str(summary).split("\n\n")
    for part in (layers, totals):
        assert len({len(line) for line in part.splitlines()}) == 1
    assert len(layers.splitlines()) == 2 + len(summary.layers)
    assert "| of these binary        | 40,108,032 (98.9%)     |" in totals


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 0)])
def test_a_shape_that_is_none_is_refused(shape) -> None:
    with pytest.raises(ValueError, match=r"image_shape_hwc is .*e\.g\. \(32, 32, 3\)"):
        summarize(build("resnet_digits", num_classes=10), shape)
