"""Floor 2: networks, by name."""

import dataclasses
import functools
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from fda_jax.layers import Method, lookup, make_method
from fda_jax.layers.own import own_function
from fda_jax.models import own
from fda_jax.models.alexnet import AlexNet
from fda_jax.models.cost import LayerSummary, Summary, summarize
from fda_jax.models.resnet import ResNet
from fda_jax.models.summary import ParameterCount, count_parameters
from fda_jax.models.vgg import VGGSmall
from fda_jax.models.vit import VisionTransformer

__all__ = [
    "MODELS",
    "AlexNet",
    "LayerSummary",
    "ModelSpec",
    "ParameterCount",
    "ResNet",
    "Summary",
    "VGGSmall",
    "VisionTransformer",
    "build",
    "check_image_shape",
    "check_network",
    "count_parameters",
    "spec",
    "summarize",
]


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """One network of the table, or of one's own.

    Attributes:
      make: constructor; takes num_classes, method, dtype and axis_name, and makes a module that has
        the last two as fields.
      min_side: smallest image height and width in pixels that leaves a pixel after all halvings.
      multiple: number of pixels that divides the image's height and width.

    Raises:
      ValueError: a number of pixels that is none.
    """

    make: Callable[..., nn.Module]
    min_side: int
    multiple: int = 1

    def __post_init__(self) -> None:
        for name, pixels in (("min_side", self.min_side), ("multiple", self.multiple)):
            if type(pixels) is not int or pixels < 1:
                raise ValueError(f"{name} is {pixels!r}: use a whole number of pixels, at least 1")


_RESNET18 = functools.partial(
    ResNet,
    stage_sizes=(2, 2, 2, 2),
    widths=(64, 128, 256, 512),
    convs_per_shortcut=1,
    pooled_stem=True,
    projection=True,
    final_relu=False,
)
MODELS: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "resnet8": ModelSpec(functools.partial(ResNet, stage_sizes=(1, 1, 1)), min_side=4),
        "resnet20": ModelSpec(ResNet, min_side=4),
        "resnet20_bireal": ModelSpec(functools.partial(ResNet, convs_per_shortcut=1), min_side=4),
        "resnet18": ModelSpec(_RESNET18, min_side=32),
        "resnet18_reactnet": ModelSpec(
            functools.partial(_RESNET18, nonlinearity_last=True), min_side=32
        ),
        "resnet34": ModelSpec(functools.partial(_RESNET18, stage_sizes=(3, 4, 6, 3)), min_side=32),
        "resnet_digits": ModelSpec(
            functools.partial(ResNet, stage_sizes=(1, 1), widths=(32, 64), convs_per_shortcut=1),
            min_side=2,
        ),
        "vgg_small": ModelSpec(VGGSmall, min_side=8),
        "alexnet": ModelSpec(AlexNet, min_side=63),
        "vit_tiny": ModelSpec(VisionTransformer, min_side=4, multiple=4),
        "vit_digits": ModelSpec(
            functools.partial(VisionTransformer, patch_px=2, width=64, depth=2, num_heads=4),
            min_side=2,
            multiple=2,
        ),
    }
)


def spec(name: str) -> ModelSpec:
    """The network of this name.

    Args:
      name: one of `MODELS`, or "module:function" for a function of one's own that takes nothing and
        declares that it returns a `ModelSpec`.

    Returns:
      A `ModelSpec`.

    Raises:
      ValueError: an unknown name (the message names the nearest), or a function that makes no
        `ModelSpec`.

    Examples:
      >>> from fda_jax import models
      >>> models.spec("vit_tiny").multiple
      4
    """
    if ":" in name:
        return own_function(name, ModelSpec, takes_settings=False)()
    return lookup(MODELS, name, "network")


def build(
    name: str,
    *,
    num_classes: int,
    method: str | Method = "fda",
    dtype: DTypeLike = jnp.float32,
    axis_name: str | None = None,
    real_layers: Sequence[str] = (),
    **knobs: object,
) -> nn.Module:
    """Build a network whose hidden layers are binary.

    `model.apply(variables, images_bhwc, train=False)` gives logits; training also passes
    `progress` and `mutable=["batch_stats"]`. The first convolution and the last dense layer are
    real, as in FDA-BNN and most of the papers (the code of BinaryConnect, BinaryNet and ProxQuant
    makes both binary). Projections in shortcuts are real, too, as in all rows of FDA-BNN's Table 5
    but ABC-Net's and BinaryNet's (its section 3.3).

    Args:
      name: one of `MODELS`, or "module:function" for one's own, see `spec`.
      num_classes: number of logits, >= 2.
      method: a name of `layers.METHODS` or a `Method`.
      dtype: of the computation, float32 or bfloat16; parameters stay float32.
      axis_name: mapped axis over which batch statistics are averaged, or None.
      real_layers: patterns of the paths of hidden layers that stay real, see
        `layers.Method.real_layers`.
      **knobs: the method's own settings, e.g. omega=0.2.

    Returns:
      A flax.linen module; `init(key, images_bhwc)` makes its variables.

    Raises:
      ValueError: an unknown network, method or knob (the nearest is named), fewer than two
        classes, or a network of one's own that cannot be made.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> from fda_jax import models
      >>> images = jnp.zeros((2, 8, 8, 1))
      >>> model = models.build("resnet_digits", num_classes=10, method="ste", window=0.5)
      >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
      >>> jax.eval_shape(model.apply, variables, images).shape
      (2, 10)
    """
    make = spec(name).make
    if not isinstance(num_classes, numbers.Integral) or num_classes < 2:
        raise ValueError(
            f"num_classes is {num_classes!r}, but a classifier needs a whole number, at least 2"
        )
    if ":" in name:
        make = own.checked(name, make)
    method = make_method(method, **knobs)
    if real_layers:
        method = dataclasses.replace(method, real_layers=real_layers)
    return make(
        num_classes=num_classes,
        method=method,
        dtype=dtype,
        axis_name=axis_name,
    )


def check_image_shape(name: str, image_shape_hwc: tuple[int, ...]) -> None:
    """Refuse images that a network cannot take, before it is built.

    Args:
      name: as of `spec`.
      image_shape_hwc: height, width and channels of one image.

    Raises:
      ValueError: names the shape, the limit and the remedy.
    """
    limits = spec(name)
    side, multiple = limits.min_side, limits.multiple
    if len(image_shape_hwc) != 3 or min(image_shape_hwc[:2]) < side:
        raise ValueError(
            f"images of shape {image_shape_hwc} do not fit {name}, which takes (height, width, "
            f"channels) with height and width of at least {side} pixels: choose another network "
            "or larger images"
        )
    if any(size % multiple for size in image_shape_hwc[:2]):
        raise ValueError(
            f"images of shape {image_shape_hwc} do not fit {name}, whose patches of "
            f"{multiple} by {multiple} pixels do not divide them: choose another network "
            f"or images whose height and width are multiples of {multiple}"
        )


def check_network(
    name: str,
    model: nn.Module,
    image_shape_hwc: tuple[int, ...],
    *,
    num_classes: int,
    method: Method,
) -> None:
    """Refuse a network of one's own that cannot be trained, and names of layers that it does not
    have; nothing is compiled.

    Those of `MODELS` can be trained, and are not looked at.

    Args:
      name: as of `spec`.
      model: what `build` made of it.
      image_shape_hwc: height, width and channels of one image.
      num_classes: number of logits.
      method: of the configuration.

    Raises:
      ValueError: it cannot be called as a training step does, its logits have another shape, or
        its variables or binary layers are not what a run can carry, average and ship; or no layer
        is what a pattern of `real_layers` says.
    """
    if ":" in name:
        own.check(name, model, image_shape_hwc, num_classes, method)
    patterns = getattr(getattr(model, "method", None), "real_layers", ())
    if patterns:
        own.check_patterns(name, model, image_shape_hwc, patterns)
