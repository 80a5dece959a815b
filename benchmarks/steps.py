"""A training step as train.py compiles it, on images of CIFAR-10's size made of random numbers."""

import copy
import dataclasses
import time
from typing import Any
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from fda_jax import models
from fda_jax.layers import Method, make_method
from fda_jax.ops import native
from fda_jax.training.optimizer import make_optimizer, make_schedule
from fda_jax.training.packing import pack_parameters
from fda_jax.training.state import TrainState, init_state
from fda_jax.training.step import Batch, Preprocessing, TrainStep, make_train_step

CLASSES, TOTAL_STEPS = 10, 1000
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


@dataclasses.dataclass
class Setting:
    """A network at its first step, with a batch and a step for it.

    Attributes:
      model: the network.
      optimizer: optax transform.
      state: of training, at step 0.
      batch: one batch of random images and labels, the same for equal sizes.
      train_step: (state, batch, key) -> (state, metrics, health), not compiled.
      key: of the augmentation.
    """

    model: nn.Module
    optimizer: optax.GradientTransformation
    state: TrainState
    batch: Batch
    train_step: TrainStep
    key: jax.Array


def make_setting(
    network: str,
    method: str | Method,
    batch_size: int,
    *,
    image_shape_hwc: tuple[int, int, int] = (32, 32, 3),
    dtype: str = "float32",
    axis_name: str | None = None,
    augment: bool = True,
    sizes: dict[str, Any] | None = None,
    state: TrainState | None = None,
    **knobs: Any,
) -> Setting:
    """The recipe of FDA-BNN's section 3.1: SGD 0.9, rate 0.1 (cosine), weight decay 1e-4.

    Args:
      network: name of `models.MODELS`.
      method: name of `layers.METHODS`, or a method.
      batch_size: images a step.
      image_shape_hwc: height, width and channels.
      dtype: "float32" or "bfloat16".
      axis_name: mapped axis of several devices, or None.
      augment: crop and flip, as in training; without, two programs can see the same images.
      sizes: attributes of the network that differ, e.g. {"widths": (32, 64, 128)}.
      state: whose parameters and statistics to start from, which spares the compilation of new
        ones; None for new ones.
      knobs: of the method.

    Returns:
      A `Setting`.
    """
    chosen = make_method(method, **knobs)
    model = models.build(
        network, num_classes=CLASSES, method=chosen, dtype=DTYPES[dtype], axis_name=axis_name
    )
    model = model.clone(**(sizes or {}))
    optimizer = make_optimizer(
        name="sgd",
        schedule=make_schedule(
            schedule="cosine", learning_rate=0.1, total_steps=TOTAL_STEPS, warmup_steps=0
        ),
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay_groups=("binary", "real"),
        clip_norm=0.0,
        latent_rule=chosen.latent_rule,
        total_steps=TOTAL_STEPS,
    )
    channels = image_shape_hwc[-1]
    preprocessing = Preprocessing(
        (0.5,) * channels, (0.25,) * channels, crop_px=4 if augment else 0, flip=augment
    )
    key = jax.random.key(0)
    if state is None:
        state = init_state(model, optimizer, key, image_shape_hwc, with_ema=False)
    else:
        state = jax.tree.map(jnp.copy, state.replace(opt_state={}))
        state = state.replace(opt_state=optimizer.init(pack_parameters(state.params)))
    train_step = make_train_step(
        model, optimizer, preprocessing, total_steps=TOTAL_STEPS, axis_name=axis_name
    )
    return Setting(
        model, optimizer, state, random_batch(batch_size, image_shape_hwc), train_step, key
    )


def random_batch(batch_size: int, image_shape_hwc: tuple[int, int, int]) -> Batch:
    """uint8 images and labels drawn from a fixed seed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *image_shape_hwc), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, batch_size)
    return Batch(jnp.asarray(images), jnp.asarray(labels, jnp.int32))


class Stepper:
    """The compiled step of a setting; each call takes one and goes on from its result.

    Args:
      setting: what to train.

    Attributes:
      compile_seconds: tracing and compilation.
      compiled: the executable, for its memory analysis.
    """

    def __init__(self, setting: Setting) -> None:
        jitted = jax.jit(setting.train_step, donate_argnums=0)
        start = time.perf_counter()
        self.compiled = jitted.lower(setting.state, setting.batch, setting.key).compile()
        self.compile_seconds = time.perf_counter() - start
        self._train_step = setting.train_step
        self._state, self._batch, self._key = setting.state, setting.batch, setting.key

    def flops(self) -> float:
        """`flops` of the step."""
        return flops(self._train_step, self._state, self._batch, self._key)

    def at(self, step: int) -> "Stepper":
        """The same program with a copy of the parameters, at this step of training."""
        other = copy.copy(self)
        other._state = jax.tree.map(jnp.copy, self._state.replace(step=jnp.int32(step)))
        return other

    def __call__(self) -> dict[str, float]:
        """Take one step, wait for it; its seconds and its loss."""
        start = time.perf_counter()
        self._state, _, health = self.compiled(self._state, self._batch, self._key)
        loss = float(health.loss)
        return {"seconds": time.perf_counter() - start, "loss": loss}


def flops(train_step: TrainStep, *arguments: Any) -> float:
    """FLOPs of a step, as XLA counts them on the CPU before it optimises.

    It cannot look into our kernels, so they are counted as the XLA programs that they replace.

    Args:
      train_step: of a `Setting`.
      arguments: its own, or their shapes.
    """
    cpu = jax.default_device(jax.devices("cpu")[0])  # XLA's GPU backend counts nothing yet
    with cpu, mock.patch.object(native, "kernels", return_value=None):
        # A function of its own, so that nothing traced before is found again.
        lowered = jax.jit(lambda *args: train_step(*args)).lower(*arguments)
    return float((lowered.cost_analysis() or {})["flops"])
