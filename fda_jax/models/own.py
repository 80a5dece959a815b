"""What a network of one's own has to be, said before anything is compiled."""

import fnmatch
import inspect
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from fda_jax.layers import BinaryConv, BinaryDense, Method
from fda_jax.layers.binary import method_of
from fda_jax.layers.own import words_of
from fda_jax.models.summary import METHODS_OWN, parameter_group

GIVEN = ("num_classes", "method", "dtype", "axis_name")
# Images of the calls that are looked at; of an evaluation and a training step.
_BATCH = 2

Shapes = dict[tuple[str, ...], Any]


def checked(name: str, make: Callable[..., Any]) -> Callable[..., nn.Module]:
    """The constructor of a network, whose arguments and result are checked.

    Args:
      name: of the network, for messages.
      make: `ModelSpec.make`.

    Returns:
      The constructor; what it raises is a ValueError.

    Raises:
      ValueError: it does not take what it is given.
    """
    try:
        inspect.signature(make).bind(**dict.fromkeys(GIVEN))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the make of {name!r} cannot be called ({error}): let it take {', '.join(GIVEN)}"
        ) from error

    def made(**given: Any) -> nn.Module:
        try:
            model = make(**given)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"the make of {name!r} fails ({words_of(error)}): call it in Python to see where"
            ) from error
        if not isinstance(model, nn.Module):
            raise ValueError(f"the make of {name!r} returned {model!r}: let it be a flax.linen one")
        for field in ("dtype", "axis_name"):
            if getattr(model, field, None) != given[field]:
                raise ValueError(
                    f"the network of {name!r}, a {type(model).__name__}, does not keep the "
                    f"{field} that it is given: let it have a field {field}, for the layers to use"
                )
        return model

    return made


def check(
    name: str,
    model: Any,
    image_shape_hwc: tuple[int, ...],
    num_classes: int,
    method: Method,
) -> None:
    """See `models.check_network`."""
    images = jax.ShapeDtypeStruct((_BATCH, *image_shape_hwc), jnp.float32)
    variables, layers = _initial(name, model, images)
    held = {key: variables.get(key, {}) for key in ("params", "batch_stats")}
    params = _flat(held["params"])
    _check_parameters(name, params, layers)
    _check_rules(name, layers, method)
    if not layers and not (method.weight is None and method.activation is None):
        raise ValueError(
            f"{name!r} has no BinaryConv or BinaryDense, so that the method would change nothing: "
            "build some, of the method that make is given, or train with the method full_precision"
        )

    def evaluate(held: Any, images: jax.Array) -> Any:
        return model.apply(held, images, train=False, mutable=["effective_weights"])

    def train(held: Any, images: jax.Array) -> Any:
        changed = ["batch_stats", "penalties"]
        logits, updates = model.apply(held, images, train=True, progress=0.5, mutable=changed)
        return logits, updates.get("batch_stats", {})

    logits, sown = _traced(name, "(images, train=False)", evaluate, held, images)
    _check_logits(name, logits, num_classes)
    _check_binary(name, params, _flat(sown.get("effective_weights", {})))
    call = "(images, train=True, progress=0.5)"
    # As on several devices, of which each sees its own images.
    several = jax.ShapeDtypeStruct((2, *images.shape), images.dtype)
    mapped = jax.vmap(train, in_axes=(None, 0), axis_name=model.axis_name)
    logits, changed = _traced(name, call, mapped, held, several)
    _check_logits(name, jax.ShapeDtypeStruct(logits.shape[1:], logits.dtype), num_classes)
    before, after = _flat(held["batch_stats"]), _flat(changed)
    for path in before.keys() | after.keys():
        was, now = before.get(path), after.get(path)
        if was is None or now is None or (was.shape, was.dtype) != (now.shape[1:], now.dtype):
            raise ValueError(
                f"the statistic {'/'.join(path)} of {name!r} is {_text(was)} before a training "
                f"step and {_text(now, skip=1)} after it: let init make it as training leaves it"
            )
    if model.axis_name is not None and before:
        _check_synchronised(name, train, held, several, model.axis_name)


def check_patterns(
    name: str, model: Any, image_shape_hwc: tuple[int, ...], patterns: Sequence[str]
) -> None:
    """Refuse a pattern of `Method.real_layers` that no layer of the network is."""
    images = jax.ShapeDtypeStruct((_BATCH, *image_shape_hwc), jnp.float32)
    _, layers = _initial(name, model, images)
    paths = ["/".join(path) for path in layers]
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in paths):
            raise ValueError(
                f"real_layers has {pattern!r}, but no hidden layer of {name} is that: they are "
                f"{', '.join(paths) or 'none'}; a pattern is of a whole name, with * for anything"
            )


def _initial(name: str, model: Any, images: Any) -> tuple[Any, dict[tuple[str, ...], Method]]:
    """Shapes of a network's first variables, and its binary layers in order: the method of each, by
    its path."""
    layers: dict[tuple[str, ...], Method] = {}

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, BinaryConv | BinaryDense):
            layers[context.module.path] = method_of(context.module)
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        variables = _traced(name, "init(key, images)", model.init, jax.random.key(0), images)
    return variables, layers


def _check_parameters(name: str, params: Shapes, layers: Collection[tuple[str, ...]]) -> None:
    if not params:
        raise ValueError(f"{name!r} has no parameters, so that nothing in it can be trained")
    for path, leaf in params.items():
        where = "/".join(path)
        if leaf.dtype != jnp.float32:
            raise ValueError(
                f"the parameter {where} of {name!r} is {leaf.dtype}: let it be float32, whatever "
                "the dtype of the computation (param_dtype=jnp.float32)"
            )
        group = parameter_group(path)
        if group not in (*METHODS_OWN, "binary"):
            continue
        if not any(path[: len(layer)] == layer for layer in layers):
            raise ValueError(
                f"the parameter {where} of {name!r} is named as those within binary layers, and "
                "belongs to none: give it another name than latent_kernel, weight, activation, "
                "output and noise, and modules above it, too"
            )


def _check_rules(name: str, layers: Mapping[tuple[str, ...], Method], method: Method) -> None:
    """Refuse a layer whose latent weights would move by another method's rule."""
    for path, own in layers.items():
        if own.weight is not None and own.latent_rule != method.latent_rule:
            rules = [rule or "none" for rule in (own.latent_rule, method.latent_rule)]
            raise ValueError(
                f"the method of the layer {'/'.join(path)} of {name!r} has the rule {rules[0]} for "
                f"latent weights, and a run has one for all layers, its method's, {rules[1]}: "
                "let both be the same, or train in a loop of your own"
            )


def _check_logits(name: str, logits: Any, num_classes: int) -> None:
    shape = getattr(logits, "shape", None)
    if shape != (_BATCH, num_classes) or not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(
            f"{name!r} makes {_text(logits)} of {_BATCH} images, but a network makes logits of "
            f"shape ({_BATCH}, {num_classes}), one for each class: let its last layer have "
            "num_classes outputs"
        )


def _check_binary(name: str, params: Shapes, sown: Shapes) -> None:
    known = {path[:-1] for path in sown}
    for path in params:
        if path[-1] == "latent_kernel" and path[:-1] not in known:
            raise ValueError(
                f"the binary layer {'/'.join(path[:-1])} of {name!r} does not tell with which "
                "weights it multiplies: let it be a module within the network, outside of nn.scan "
                "and nn.vmap"
            )


def _check_synchronised(
    name: str, train: Callable[..., Any], held: Any, several: Any, axis_name: str
) -> None:
    def statistics(held: Any, images: jax.Array) -> Any:
        return train(held, images)[1]

    # An output that vmap shall not map is refused where it depends on what is mapped.
    alike = jax.vmap(statistics, in_axes=(None, 0), out_axes=None, axis_name=axis_name)
    try:
        jax.eval_shape(alike, held, several)
    except ValueError as error:
        raise ValueError(
            f"the running statistics of {name!r} would differ from device to device: hand "
            "axis_name to every layer that has some, as nn.BatchNorm(axis_name=self.axis_name)"
        ) from error


def _traced(name: str, call: str, function: Callable[..., Any], *args: Any) -> Any:
    """The shapes that a function of the network makes; what it raises is a ValueError."""
    try:
        return jax.eval_shape(function, *args)
    except Exception as error:
        why = textwrap.shorten(words_of(error), 400, placeholder=" ...")
        shape = args[-1].shape[-4:]
        raise ValueError(
            f"{name!r} cannot be called as {call} with images of shape {shape} ({why}): let it "
            "take that, with defaults for train and progress, and need no more than params and "
            "batch_stats (no random keys)"
        ) from error


def _flat(tree: Mapping[str, Any]) -> Shapes:
    return dict(flatten_dict(dict(tree)))


def _text(leaf: Any, skip: int = 0) -> str:
    if leaf is None:
        return "missing"
    shape = getattr(leaf, "shape", None)
    return str(leaf) if shape is None else f"{leaf.dtype} {tuple(shape[skip:])}"
