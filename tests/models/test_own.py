"""Networks of one's own are found by their names, and refused in words before they are compiled."""

import sys

import jax.numpy as jnp
import pytest

from fda_jax import layers, models

OWN = """
import functools

import flax.linen as nn
import jax.numpy as jnp

from fda_jax import layers, models


class Net(nn.Module):
    kind: str
    num_classes: int
    method: layers.Method
    dtype: jnp.dtype = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images, *, train=False, progress=None):
        kind = self.kind
        x = images.reshape(images.shape[0], -1)
        if kind == "random":
            x = nn.Dropout(0.5, deterministic=not train)(x)
        if kind == "memory":
            seen = self.variable("memory", "seen", jnp.zeros, ())
            x = x + seen.value
        if kind == "apart":
            x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        if kind == "half":
            x = nn.Dense(4, param_dtype=jnp.bfloat16, name="half")(x)
        if kind == "named":
            x = nn.Dense(4, name="output")(x)
        if kind == "latent":
            x = x @ self.param("latent_kernel", nn.initializers.ones, (x.shape[-1], 4))
        if kind == "growing":
            count = self.variable("batch_stats", "count", jnp.zeros, ())
            if train:
                count.value = jnp.zeros((3,))
        if kind == "ruled":
            x = layers.BinaryDense(4, method="binaryconnect", name="ruled")(x, train, progress)
        if kind == "hidden":
            x = nn.vmap(
                layers.BinaryDense,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=2,
            )(4, method=self.method, name="hidden")(x).sum(0)
        elif kind != "real":
            x = layers.BinaryDense(8, method=self.method, name="b")(x, train, progress)
        if kind == "pixels":
            return x
        if kind == "labels":
            return jnp.zeros((len(x), self.num_classes), jnp.int32)
        return nn.Dense(self.num_classes, name="classifier")(x)


class Deaf(Net):
    def __call__(self, images):
        return Net.__call__(self, images)


class Fieldless(nn.Module):
    num_classes: int


def narrow() -> models.ModelSpec:
    make = functools.partial(models.ResNet, stage_sizes=(1,), widths=(8,))
    return models.ModelSpec(make, min_side=4)


def sized(width: int = 8) -> models.ModelSpec:
    return narrow()


def bare(width) -> models.ModelSpec:
    return narrow()


def halved() -> layers.Method:
    return layers.make_method("ste")


def fails() -> models.ModelSpec:
    return [][0]


def flat() -> models.ModelSpec:
    return models.ModelSpec(functools.partial(Net, "good"), min_side=0)


def short() -> models.ModelSpec:
    return models.ModelSpec(lambda num_classes, method: None, min_side=4)


def none() -> models.ModelSpec:
    return models.ModelSpec(lambda **_: None, min_side=4)


def broken() -> models.ModelSpec:
    return models.ModelSpec(lambda **_: [][0], min_side=4)


def fieldless() -> models.ModelSpec:
    return models.ModelSpec(lambda num_classes, **_: Fieldless(num_classes), min_side=4)


def deaf() -> models.ModelSpec:
    return models.ModelSpec(functools.partial(Deaf, "good"), min_side=4)
"""
KINDS = (
    *("good", "random", "memory", "apart", "half", "named", "latent"),
    *("growing", "hidden", "real", "ruled", "pixels", "labels"),
)
for _kind in KINDS:
    OWN += f"""

def {_kind}() -> models.ModelSpec:
    return models.ModelSpec(functools.partial(Net, "{_kind}"), min_side=4)
"""


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    (tmp_path / "mynets.py").write_text(OWN)


def looked_at(name: str, method: str = "ste", shape: tuple[int, ...] = (4, 4, 1)) -> None:
    """What is done with a configuration's network before anything is compiled."""
    made = layers.make_method(method)
    models.check_image_shape(name, shape)
    model = models.build(name, num_classes=3, method=made, dtype=jnp.bfloat16, axis_name="devices")
    models.check_network(name, model, shape, num_classes=3, method=made)


@pytest.mark.parametrize(
    ("name", "method"),
    [("narrow", "ste"), ("narrow", "full_precision"), ("good", "rbnn"), ("real", "full_precision")],
)
def test_a_network_of_ones_own_is_named_by_its_module_and_function(name, method) -> None:
    looked_at(f"mynets:{name}", method)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mynets:narow", r"has no function 'narow' \(did you mean 'narrow'\?\)"),
        ("yournets:narrow", "no module 'yournets': let it lie in the current folder"),
        ("mynets.py:narrow", "names no function: write 'module:function', without a path"),
        ("mynets:halved", r"is not called: declare it, def halved\(\.\.\.\) -> ModelSpec"),
        ("mynets:sized", r"takes arguments \(width\), .* write a function without any for each"),
        ("mynets:bare", r"takes arguments \(width\)"),
        ("mynets:fails", r"mynets\.py\) fails \(IndexError: list index out of range\)"),
        ("mynets:flat", "min_side is 0: use a whole number of pixels, at least 1"),
        ("mynets:short", "unexpected keyword argument 'dtype'.*let it take num_classes, method, d"),
        ("mynets:none", "returned None: let it be a flax.linen"),
        ("mynets:broken", r"the make of 'mynets:broken' fails \(IndexError"),
        ("mynets:fieldless", "a Fieldless, does not keep the dtype .* let it have a field dtype"),
        ("mynets:deaf", r"cannot be called as \(images, train=False\).*argument 'train'"),
        ("mynets:random", r"as \(images, train=True.*no random keys"),
        ("mynets:memory", r"no more than params and batch_stats"),
        ("mynets:apart", "would differ from device to device: hand axis_name to every layer"),
        ("mynets:half", "the parameter half/bias of .* is bfloat16: let it be float32"),
        ("mynets:named", "the parameter output/bias of .* is named as those within binary layers"),
        ("mynets:latent", "the parameter latent_kernel of .* belongs to none"),
        ("mynets:growing", r"count of .* is float32 \(\) before .* and float32 \(3,\) after it"),
        ("mynets:hidden", "the binary layer hidden of .* outside of nn.scan and nn.vmap"),
        (
            "mynets:ruled",
            r"layer ruled of .* the rule ClipLatents\(bound=1\.0\) .* method's, none:",
        ),
        ("mynets:real", "has no BinaryConv or BinaryDense, .* train with the method full_prec"),
        ("mynets:pixels", r"makes .* \(2, 8\) of 2 images, .* shape \(2, 3\), one for each class"),
        ("mynets:labels", r"makes int32 \(2, 3\) of 2 images"),
    ],
)
def test_what_is_no_network_is_refused_in_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        looked_at(name)
    assert "\n" not in str(caught.value)


def test_images_too_small_are_refused_as_those_of_any_network() -> None:
    with pytest.raises(ValueError, match=r"\(3, 3, 1\) do not fit mynets:narrow.*at least 4"):
        models.check_image_shape("mynets:narrow", (3, 3, 1))
