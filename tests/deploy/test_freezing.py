"""A frozen network answers as the one that it was made from."""

import dataclasses
import functools
import math
import zipfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from fda_jax import data, deploy, layers, models
from fda_jax.layers import METHODS, make_method
from fda_jax.ops import native

# One of each kind; the others are of the same parts and wait for the slow tests.
QUICK = {"fda", "full_precision", "rbnn"}
METHODS_OF_A_BIT = set(METHODS) - {"full_precision"}
# Whose activations take other values than -1 and 1.
METHODS_OF_OTHER_LEVELS = {"full_precision", "tbn", "hwgq", "abc_net", "adabin"}
MEAN, STD = (0.5,), (0.25,)
SHAPE = (8, 8, 1)
# Side of the images, and attributes that make a network narrow: what is in it stays.
NETWORKS = {
    "vgg_small": (16, {"widths": (8, 16, 24)}),
    "vit_digits": (8, {"depth": 1}),
    "resnet18": (32, {"stage_sizes": (1, 1), "widths": (8, 16)}),
}

can_count = native.kernels() is not None
tiny = functools.partial(models.ResNet, stage_sizes=(1,), widths=(8,), num_classes=3)
several = pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in METHODS],
)


def network_of(name):
    """One of `NETWORKS` with FDA's method, and the shape of its images."""
    side, attributes = NETWORKS[name]
    return models.build(name, num_classes=10).clone(**attributes), (side, side, 1)


def trained(model, shape, key):
    """Variables that are not those of the start: other statistics, other scales."""

    @jax.jit
    def make(key):
        def moved(leaf):
            return leaf + jax.random.uniform(key, leaf.shape, minval=0.01, maxval=0.1)

        return jax.tree.map(moved, model.init(key, jnp.zeros((1, *shape))))

    return make(key)


def pictures(shape, key, number=5):
    return np.asarray(jax.random.randint(key, (number, *shape), 0, 256)).astype(np.uint8)


def frozen(model, variables, shape, arithmetic="auto"):
    channels = shape[-1]
    network = deploy.freeze(model, variables, shape, mean=MEAN * channels, std=STD * channels)
    return dataclasses.replace(network, arithmetic=arithmetic)


def logits(model, variables, images):
    channels = images.shape[-1]
    inputs = data.normalize(jnp.asarray(images), MEAN * channels, STD * channels)
    return np.asarray(jax.jit(model.apply)(variables, inputs))


def assert_same_answers(network, model, variables, images):
    wanted = logits(model, variables, images)
    for arithmetic in ("real", "auto"):
        answers = dataclasses.replace(network, arithmetic=arithmetic)(images)
        # Rounding aside; a sign that differed would change a logit by far more.
        np.testing.assert_allclose(answers, wanted, atol=1e-5 * np.abs(wanted).max())


def assert_costs(network, model, shape):
    """The summary, which computes nothing, has the bytes of every layer in the file."""
    summary = models.summarize(model, shape)
    layers = network.facts["binary"]
    held = dict.fromkeys((layer.name for layer in summary.layers), 0)
    for name, array in network.arrays.items():
        path = name.removeprefix("params/").removeprefix("batch_stats/")
        within = [layer for layer in layers if path.startswith(f"{layer}/")]
        held[within[0] if within else path.rpartition("/")[0]] += array.nbytes
    assert {layer.name: layer.bytes_packed for layer in summary.layers} == held
    sizes = network.sizes()
    assert summary.bytes_packed == sizes["binary"] + sizes["real"]
    assert summary.bytes_float32 == sizes["unpacked"]
    for layer in summary.layers:
        if layer.name in layers and layer.macs:
            bits = layers[layer.name]["bits"]
            assert layer.weight_bits == (bits or 32)
            assert layer.binary == (bits is not None) * math.prod(layers[layer.name]["shape"])
    assert summary.counts_bits == (network.bit_program is not None) or not can_count
    return summary


@several
def test_a_frozen_network_answers_as_its_model(method, key):
    model = tiny(method=make_method(method))
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    assert_same_answers(network, model, variables, pictures(SHAPE, key))
    bits = {layer["bits"] for layer in network.facts["binary"].values()}
    assert bits == ({1} if method in METHODS_OF_A_BIT else {None})
    assert (network.bit_program is None) == (method in METHODS_OF_OTHER_LEVELS)
    assert network.counts_bits == (network.bit_program is not None and can_count)
    assert_costs(network, model, SHAPE)


@pytest.mark.parametrize(
    ("knobs", "bits"),
    [
        ({"method": "abc_net", "weight_bases": 3}, 2),
        pytest.param({"method": "dorefa", "weight_bits": 3}, 3, marks=pytest.mark.slow),
        pytest.param({"method": "fda", "scale": "filter"}, 1, marks=pytest.mark.slow),
    ],
)
def test_weights_of_a_few_values_take_a_few_bits(knobs, bits, key):
    method = make_method(**knobs)
    model = tiny(method=method)
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    assert {layer["bits"] for layer in network.facts["binary"].values()} == {bits}
    assert_same_answers(network, model, variables, pictures(SHAPE, key))
    assert_costs(network, model, SHAPE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_every_kind_of_network_can_be_frozen(name, key):
    model, shape = network_of(name)
    variables = trained(model, shape, key)
    network = frozen(model, variables, shape)
    assert_same_answers(network, model, variables, pictures(shape, key, 2))
    sizes = network.sizes()
    # A bit each, and two levels a filter.
    binary = models.count_parameters(variables["params"]).binary
    filters = sum(layer["shape"][-1] for layer in network.facts["binary"].values())
    assert sizes["binary"] == binary // 8 + 8 * filters
    assert_costs(network, model, shape)


@pytest.mark.slow
def test_a_network_of_16_bit_arithmetic_can_be_frozen(key):
    model = tiny(method=make_method("fda"), dtype=jnp.bfloat16)
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    wanted = logits(model, variables, pictures(SHAPE, key))
    for arithmetic in ("real", "auto"):
        answers = dataclasses.replace(network, arithmetic=arithmetic)(pictures(SHAPE, key))
        np.testing.assert_allclose(answers, wanted, rtol=0.05, atol=0.05)


@pytest.fixture(scope="module")
def fda():
    """Variables of a network, and the frozen one."""
    model = tiny(method=make_method("fda"))
    variables = trained(model, SHAPE, jax.random.key(0))
    return variables, frozen(model, variables, SHAPE)


def test_nothing_of_the_training_is_left(fda):
    variables, network = fda
    assert not [name for name in network.arrays if "latent" in name or "noise" in name]
    parameters = models.count_parameters(variables["params"])
    statistics = sum(leaf.size for leaf in jax.tree.leaves(variables["batch_stats"]))
    assert network.sizes()["real"] == 4 * (parameters.real + statistics)
    # Nor where the source lay, in the program.
    assert b"fda_jax/" not in network.program
    assert b".py" not in network.program


@pytest.mark.skipif(not can_count, reason="no C++ compiler, or FDA_JAX_NATIVE=0")
def test_where_bits_are_counted_no_binary_kernel_is_a_float_array(fda):
    _, network = fda
    text = str(export.deserialize(bytearray(network.bit_program)).mlir_module())
    shape = "x".join(map(str, network.facts["binary"]["stage1_block1/conv1"]["shape"]))
    assert text.count(native.SIGNS) == 2
    assert f"tensor<{shape}xf32>" not in text
    assert native.SIGNS.encode() not in network.program


def test_bits_are_counted_where_that_can_be_done_and_refused_where_not(fda, key, monkeypatch):
    _, network = fda
    other = tiny(method=make_method("tbn"))
    with pytest.raises(ValueError, match=r"'bits', but this network has no program for it \(its"):
        frozen(other, trained(other, SHAPE, key), SHAPE, arithmetic="bits")
    with pytest.raises(ValueError, match=r"arithmetic is 'fast': use one of auto, bits, real"):
        dataclasses.replace(network, arithmetic="fast")
    assert set(network.facts["kernels"]) - {native.FORWARD} == {native.SIGNS}
    later = {**network.facts, "kernels": ["fda_jax_signs_2"]}
    assert not dataclasses.replace(network, facts=later).counts_bits
    with pytest.raises(ValueError, match=r"calls fda_jax_signs_2, a kernel that.*\(export the run"):
        dataclasses.replace(network, facts=later, arithmetic="bits")
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert not dataclasses.replace(network).counts_bits
    with pytest.raises(ValueError, match=r"'bits', but its kernel, which a C\+\+ compiler makes"):
        dataclasses.replace(network, arithmetic="bits")


def test_a_file_holds_the_bytes_that_a_summary_says_and_what_it_is_packed_in(fda, tmp_path):
    _, network = fda
    network.save(tmp_path / "net.npz")
    arrays = others = headers = 0
    with zipfile.ZipFile(tmp_path / "net.npz") as file:
        for entry in file.infolist():
            with file.open(entry) as stream:
                np.lib.format.read_magic(stream)
                shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
                held = math.prod(shape) * dtype.itemsize
                headers += stream.tell()
                assert entry.file_size == stream.tell() + held
            if entry.filename in ("facts.npy", "program.npy", "bit_program.npy"):
                others += held
            else:
                arrays += held
    assert arrays == models.summarize(tiny(method=make_method("fda")), SHAPE).bytes_packed
    assert others > network.sizes()["program"]


def test_the_weights_are_those_of_the_model(fda):
    variables, network = fda
    weights = network.weights()
    assert weights.keys() == {"stage1_block1/conv1", "stage1_block1/conv2"}
    latent = variables["params"]["stage1_block1"]["conv2"]["latent_kernel"]
    wanted = np.where(latent > 0, 1.0, -1.0) * np.mean(np.abs(latent))
    np.testing.assert_allclose(weights["stage1_block1/conv2"], wanted, rtol=1e-6)


@pytest.mark.parametrize("place", ["latent_kernel", "classifier"])
def test_a_broken_network_is_refused(place, key):
    model = tiny(method=make_method("fda"))
    variables = trained(model, SHAPE, key)
    params = variables["params"]
    layer = params["classifier"] if place == "classifier" else params["stage1_block1"]["conv1"]
    name = "kernel" if place == "classifier" else place
    layer[name] = layer[name].at[0].set(jnp.nan)
    with pytest.raises(
        ValueError, match=r"holds \d+ numbers that are not finite.*earlier checkpoint"
    ):
        frozen(model, variables, SHAPE)


class Own(nn.Module):
    """A network that is none of `models`, of layers with several methods."""

    methods: tuple

    @nn.compact
    def __call__(self, x):
        first, second = self.methods
        twice = layers.BinaryConv(8, method=first, name="twice")
        first_of_all = layers.BinaryConv(8, padding=((0, 2), (3, 0)), method=first)
        # Without a shift a sum of signs that is 0 would have any sign, as it is rounded.
        for conv in (first_of_all, twice, twice):
            x = nn.BatchNorm(use_running_average=True)(conv(x))
        x = x.mean((1, 2))
        return nn.Dense(3)(layers.BinaryDense(16, method=second)(x))


@pytest.mark.parametrize(
    ("methods", "counts"), [(("fda", "xnor_net"), True), (("ste", "hwgq"), False)]
)
def test_a_network_of_ones_own_answers_as_its_model(methods, counts, key):
    model = Own(methods)
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    assert set(network.facts["binary"]) == {"BinaryConv_0", "twice", "BinaryDense_0"}
    assert {layer["bits"] for layer in network.facts["binary"].values()} == {1}
    assert network.counts_bits == (counts and can_count)
    assert_same_answers(network, model, variables, pictures(SHAPE, key))
    summary = assert_costs(network, model, SHAPE)
    # 8 by 9 pixels, 9 taps, 8 filters; twice is called twice, and holds its kernel once.
    by_name = {layer.name: layer for layer in summary.layers}
    assert by_name["BinaryConv_0"].binary_macs == 72 * 9 * 1 * 8
    assert by_name["twice"].binary_macs == 2 * 72 * 9 * 8 * 8
    assert by_name["twice"].binary == 9 * 8 * 8
    dense = by_name["BinaryDense_0"]
    assert (dense.binary_macs, dense.mixed_macs) == ((128, 0) if counts else (0, 128))


@pytest.mark.parametrize(
    "methods",
    [  # in plain tests rbnn and abc_net are in networks of their own
        ("adabin", "pcnn"),
        pytest.param(("rbnn", "recu"), marks=pytest.mark.slow),
        pytest.param(("abc_net", "lns"), marks=pytest.mark.slow),
    ],
)
def test_quantizers_that_are_modules_are_frozen_by_their_methods_names(methods, key):
    model = Own(methods)
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    assert_same_answers(network, model, variables, pictures(SHAPE, key))


class WithHead(nn.Module):
    """A network with a binary head that only a loss of the training reads."""

    @nn.compact
    def __call__(self, x):
        x = layers.BinaryConv(8, method="ste", name="conv")(x)
        self.sow("losses", "seen", layers.BinaryDense(2, method="hwgq", name="head")(x).sum())
        return nn.Dense(3)(nn.BatchNorm(use_running_average=True)(x).mean((1, 2)))


def test_a_layer_of_the_training_alone_is_left_behind(key):
    model = WithHead()
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    assert set(network.facts["binary"]) == {"conv"}
    assert not [name for name in network.arrays if "head" in name]
    assert network.counts_bits == can_count
    assert_same_answers(network, model, variables, pictures(SHAPE, key))
    by_name = {layer.name: layer for layer in models.summarize(model, SHAPE).layers}
    head = by_name.pop("head")
    assert (head.training_only, head.macs, head.bytes_packed) == (8 * 2, 0, 0)
    assert sum(layer.bytes_packed for layer in by_name.values()) == sum(
        array.nbytes for array in network.arrays.values()
    )


class Scanned(nn.Module):
    """The same binary layer several times, by nn.scan."""

    @nn.compact
    def __call__(self, x):
        def body(conv, x, _):
            return conv(x), None

        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = scan(layers.BinaryConv(1, method="ste", name="conv"), x, None)
        return x.mean((1, 2))


def test_a_layer_whose_bits_do_not_reach_it_is_refused_by_name(key):
    alone = layers.BinaryConv(1, method="ste")
    for model, name in ((Scanned(), "conv/latent"), (alone, "params/latent")):
        variables = jax.jit(model.init)(key, jnp.zeros((1, *SHAPE)))
        with pytest.raises(ValueError, match=rf"{name}_kernel.*outside of nn\.scan"):
            frozen(model, variables, SHAPE)
    with pytest.raises(ValueError, match=r"params/conv/latent_kernel.*outside of nn\.scan"):
        models.summarize(Scanned(), SHAPE)


class Counting(nn.Module):
    """A layer that computes with the number of images."""

    @nn.compact
    def __call__(self, x):
        return x / int(x.shape[0])


class WithCounting(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(Counting(name="counting")(x).mean((1, 2)))


@pytest.mark.parametrize("freeze", [deploy.freeze, deploy.to_onnx])
def test_a_layer_that_needs_the_number_of_images_is_refused_by_name(key, freeze):
    variables = jax.jit(WithCounting().init)(key, jnp.zeros((1, *SHAPE)))
    with pytest.raises(ValueError, match=r"^the layer counting .* number of images"):
        freeze(WithCounting(), variables, SHAPE, mean=(0.5,), std=(0.5,))


def test_without_a_compiler_there_is_the_program_in_floating_point_alone(key, monkeypatch):
    monkeypatch.setattr(native, "kernels", lambda: None)
    model = tiny(method=make_method("ste"))
    variables = trained(model, SHAPE, key)
    network = frozen(model, variables, SHAPE)
    assert network.bit_program is None
    assert_same_answers(network, model, variables, pictures(SHAPE, key))


@pytest.mark.parametrize(
    ("method", "dtype"), [("full_precision", jnp.float64), ("ste", jnp.bfloat16)]
)
def test_real_numbers_are_shipped_in_32_bits(key, tmp_path, method, dtype):
    model = tiny(method=make_method(method))
    variables = trained(model, SHAPE, key)
    with jax.enable_x64(dtype == jnp.float64):
        variables = jax.tree.map(lambda leaf: leaf.astype(dtype), dict(variables))
        network = frozen(model, variables, SHAPE)
    assert {array.dtype.name for array in network.arrays.values()} <= {"float32", "uint8"}
    network.save(tmp_path / "net.npz")
    images = pictures(SHAPE, key)
    wanted = logits(
        model, jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), variables), images
    )
    # Scales of the weights are rounded to 16 bits where the weights are.
    atol = 1e-3 * np.abs(wanted).max()
    np.testing.assert_allclose(deploy.load(tmp_path / "net.npz")(images), wanted, atol=atol)
