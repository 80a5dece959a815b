"""Optimizers and learning-rate schedules, from the words of a configuration."""

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from fda_jax import ops
from fda_jax.models.summary import GROUPS, group_labels
from fda_jax.training.packing import Packed, pack_parameters, unpacked
from fda_jax.training.plan import choose, require

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("cosine", "linear", "step", "constant")


def make_schedule(
    *,
    schedule: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int,
    boundaries: Sequence[int] = (),
    factor: float = 0.1,
) -> optax.Schedule:
    """Learning rate as a function of the step.

    Args:
      schedule: "cosine" (half a cosine to 0), "linear" (to 0), "step" (times `factor` at each
        boundary) or "constant".
      learning_rate: the largest value, > 0.
      total_steps: length of the run, >= 1.
      warmup_steps: linear rise from 0 before the schedule; it ends before the last step.
      boundaries: steps, ascending, for "step"; the first comes after the warm-up.
      factor: for "step".

    Returns:
      A function from the step to the learning rate.

    Raises:
      ValueError: an unknown schedule or a number out of its range.
    """
    choose("optimizer.schedule", schedule, SCHEDULES)
    require(learning_rate > 0, "optimizer.learning_rate", learning_rate, "must be positive")
    require(
        0 <= warmup_steps < max(1, total_steps - 1),
        "optimizer.warmup_epochs",
        f"{warmup_steps} steps",
        f"must end before the last of the run's {total_steps} steps (0 for no warm-up)",
    )
    steps = total_steps - warmup_steps
    if schedule == "cosine":
        main = optax.cosine_decay_schedule(learning_rate, steps)
    elif schedule == "linear":
        main = optax.linear_schedule(learning_rate, 0.0, steps)
    elif schedule == "step":
        require(
            bool(boundaries) and list(boundaries) == sorted(set(boundaries)),
            "optimizer.boundary_epochs",
            tuple(boundaries),
            'must be ascending and not empty for the schedule "step"',
        )
        require(
            warmup_steps == 0 or warmup_steps < boundaries[0],
            "optimizer.warmup_epochs",
            f"{warmup_steps} steps",
            f"must end before the rate falls at step {boundaries[0]} (optimizer.boundary_epochs)",
        )
        main = optax.piecewise_constant_schedule(
            learning_rate, {at - warmup_steps: factor for at in boundaries}
        )
    else:
        main = optax.constant_schedule(learning_rate)
    if warmup_steps == 0:
        return main
    rise = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    return optax.join_schedules([rise, main], [warmup_steps])


def make_optimizer(
    *,
    name: str,
    schedule: optax.Schedule,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    decay_groups: Sequence[str],
    clip_norm: float,
    clip_value: float = 0.0,
    latent_rule: ops.LatentRule | None = None,
    total_steps: int = 1,
) -> optax.GradientTransformation:
    """The optimizer as an optax transform.

    SGD and Adam add weight decay to the gradient, as PyTorch's optimizers of these names do and
    the papers' recipes assume; AdamW decays the weights themselves.

    Args:
      name: "sgd", "adam" or "adamw".
      schedule: learning rate by step.
      momentum: of SGD, in [0, 1).
      nesterov: whether SGD looks ahead.
      weight_decay: L2 coefficient, >= 0.
      decay_groups: groups of parameters that decay, of `models.summary.GROUPS`.
      clip_norm: largest global norm of the gradient, or 0 for no clipping.
      clip_value: largest magnitude of an element of the gradient, applied before `clip_norm`; 0 for
        no clipping. FDA-BNN's Eq. 2 has 1 for binary weights.
      latent_rule: what becomes of its step on latent weights; None takes it as it is.
      total_steps: length of the run, by which a latent rule knows the progress.

    Returns:
      An `optax.GradientTransformation` of trees of parameters, or of `Packed` ones.

    Raises:
      ValueError: an unknown name or group, or a number out of its range.
    """
    choose("optimizer.name", name, OPTIMIZERS)
    for group in decay_groups:
        choose("optimizer.decay_groups", group, GROUPS)
    require(weight_decay >= 0, "optimizer.weight_decay", weight_decay, "must not be negative")
    require(clip_norm >= 0, "optimizer.clip_norm", clip_norm, "must not be negative")
    require(clip_value >= 0, "optimizer.clip_value", clip_value, "must not be negative")
    require(0 <= momentum < 1, "optimizer.momentum", momentum, "must lie in [0, 1)")

    def decays(params: optax.Params) -> optax.Params:
        return jax.tree.map(lambda group: group in decay_groups, _labels(params))

    decay = optax.add_decayed_weights(weight_decay, mask=decays)
    limits = [optax.clip(clip_value)] if clip_value else []
    limits += [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    if name == "sgd":
        trace = optax.trace(momentum, nesterov=nesterov) if momentum else optax.identity()
        parts = (*limits, decay, trace)
    elif name == "adam":
        parts = (*limits, decay, optax.scale_by_adam())
    else:
        parts = (*limits, optax.scale_by_adam(), decay)
    optimizer = optax.chain(*parts, optax.scale_by_learning_rate(schedule))
    if latent_rule is None:
        return optimizer
    return with_latent_rule(optimizer, latent_rule, total_steps=total_steps)


def with_latent_rule(
    optimizer: optax.GradientTransformation, rule: ops.LatentRule, *, total_steps: int
) -> optax.GradientTransformation:
    """Let a rule decide what an optimizer's step does to latent weights.

    Args:
      optimizer: any of optax, the learning rate included; its steps of other parameters stay.
      rule: of a method, see `Method.latent_rule`.
      total_steps: length of the run, by which the rule knows the progress, >= 1.

    Returns:
      An `optax.GradientTransformation` of trees of parameters, whose `update` needs `params`, and
      hands on what the optimizer's own takes besides, such as the `value` of the loss. Gradients
      are collected around it, `optax.MultiSteps(with_latent_rule(...), k)`: the other way round the
      rule would act between updates, too.

    Raises:
      ValueError: total_steps below 1; by `update`, without `params`.

    Examples:
      >>> import jax.numpy as jnp, optax
      >>> from fda_jax import layers
      >>> from fda_jax.training.optimizer import with_latent_rule
      >>> method = layers.make_method("binaryconnect")
      >>> optimizer = with_latent_rule(optax.sgd(0.1), method.latent_rule, total_steps=1000)
      >>> params = {"conv": {"latent_kernel": jnp.array([0.95])}}
      >>> updates, _ = optimizer.update({"conv": {"latent_kernel": jnp.array([-1.0])}},
      ...                               optimizer.init(params), params)
      >>> float(optax.apply_updates(params, updates)["conv"]["latent_kernel"][0])  # not 1.05
      1.0
    """

    if not total_steps >= 1:
        raise ValueError(
            f"total_steps is {total_steps}, but a run has at least 1, by which a rule knows the "
            "progress: give the number of its updates"
        )
    optimizer = optax.with_extra_args_support(optimizer)

    def latents(tree: Any) -> list[jax.Array]:
        tree = unpacked(tree)
        groups = jax.tree.leaves(group_labels(tree))
        pairs = zip(jax.tree.leaves(tree), groups, strict=True)
        return [leaf for leaf, group in pairs if group == "binary"]

    def init(params: optax.Params) -> Any:
        memories = [rule.init(w) for w in latents(params)]
        return optimizer.init(params), jnp.zeros((), jnp.int32), memories

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        if params is None:
            raise ValueError(
                "a rule for latent weights needs to see them: call update(gradients, state, params)"
            )
        inner, step, memories = cast(tuple[Any, jax.Array, list[Any]], state)
        gradients = latents(updates)
        updates, inner = optimizer.update(updates, inner, params, **extra_args)
        progress = step.astype(jnp.float32) / total_steps
        steps, kept = [], []
        for w, delta, gradient, memory in zip(
            latents(params), latents(updates), gradients, memories, strict=True
        ):
            after, memory = rule.update(w, delta, gradient, memory, progress)
            steps.append(after - w)
            kept.append(memory)
        rest = iter(steps)
        tree = unpacked(updates)
        moved: Any = jax.tree.map(
            lambda update, group: next(rest) if group == "binary" else update,
            tree,
            group_labels(tree),
        )
        if isinstance(updates, Packed):
            moved = pack_parameters(moved)
        return moved, (inner, step + 1, kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _labels(params: Any) -> Any:
    """The tree of `params` with the name of its group at each leaf."""
    if isinstance(params, Packed):
        return dataclasses.replace(params, vectors={group: group for group in params.vectors})
    return group_labels(params)
