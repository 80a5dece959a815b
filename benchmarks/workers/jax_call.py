"""Worker of `sides`: calls of many steps, as a run makes them, data set on the device.

python benchmarks/workers/jax_call.py JSON, the fields of `Task`
"""

import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import sides
import steps

from fda_jax.training import devices
from fda_jax.training.losses import cross_entropy
from fda_jax.training.metrics import Metrics
from fda_jax.training.state import init_state
from fda_jax.training.step import Preprocessing, make_eval_step, make_train_call, make_train_step

EVAL_BATCH, EVAL_EXAMPLES = 1000, 10_000
PREPROCESSING = Preprocessing((0.5,) * 3, (0.25,) * 3, crop_px=0, flip=False)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker trains.

    Attributes:
      network: name of `models.MODELS`.
      batch: images a step.
      dtype: "float32" or "bfloat16".
      side_px: of the images.
      examples: images in the data set.
      steps_per_call: steps in a compiled call.
      turn_seconds: a turn takes calls until it has lasted this long.
      method: name of `layers.METHODS`.
      blocks: in each stage of a network for CIFAR-10's images; 3 make ResNet-20.
      seeds: runs trained at once, each with weights, order and augmentation of its own.
      processes: that do all this side by side; for who starts them.
      evaluate: also time an evaluation of 10,000 images.
      mode: of torch.compile, or "eager"; for the PyTorch worker.
      variables: file of initial weights; for the PyTorch worker.
      xla_flags: for XLA, beside those of the environment; for who starts the worker.
      ready_seconds: the worker ends if it is not ready for its first turn by then; 0 for never.
    """

    network: str
    batch: int
    dtype: str
    side_px: int
    examples: int
    steps_per_call: int
    turn_seconds: float
    method: str = "fda"
    blocks: int = 3
    seeds: int = 1
    processes: int = 1
    evaluate: bool = False
    mode: str = "default"
    variables: str = ""
    xla_flags: str = ""
    ready_seconds: float = 0


class Runner:
    """The compiled call of a task, and the state that it goes on from."""

    def __init__(self, task: Task) -> None:
        self._task, self._rng = task, np.random.default_rng(0)
        self._shape = (task.side_px, task.side_px, 3)
        with jax.default_device(jax.devices("cpu")[0]):  # quick to compile what runs once there
            self.setting = steps.make_setting(
                task.network,
                task.method,
                task.batch,
                image_shape_hwc=self._shape,
                dtype=task.dtype,
                axis_name=devices.AXIS,
                sizes={"stage_sizes": (task.blocks,) * 3} if task.network == "resnet20" else None,
            )
            start, self._key = (self.setting.state, Metrics.zero()), self.setting.key
            if task.seeds > 1:
                self._key = jax.vmap(jax.random.key)(jnp.arange(task.seeds))
                start = jax.vmap(self._start)(self._key)
        examples = steps.random_batch(task.examples, self._shape)
        call = make_train_call(self.setting.train_step, steps_per_call=task.steps_per_call)
        self._examples = devices.replicate((examples.images, examples.labels))
        if task.seeds > 1:
            call = jax.vmap(call, in_axes=(0, 0, None, None, 0, None, 0))
        self._state, self._totals = devices.replicate(start)
        self._call = devices.parallel(
            call,
            in_axes=(None, None, None, None, 0, None, None),
            donate=(0, 1),
        )

    def _start(self, key: jax.Array) -> tuple:
        setting = self.setting
        state = init_state(setting.model, setting.optimizer, key, self._shape, with_ema=False)
        return state, Metrics.zero()

    def call(self) -> float:
        """Run one call and wait for it; the mean loss of its last step."""
        task = self._task
        # Behind the axis of the devices, of which there is one.
        size = (1, task.seeds, task.steps_per_call, task.batch)
        size = size if task.seeds > 1 else (1, *size[2:])
        indices = self._rng.integers(0, task.examples, size, dtype=np.int32)
        count = np.int32(task.steps_per_call)
        self._state, self._totals, health = self._call(
            self._state, self._totals, *self._examples, indices, count, self._key
        )
        if not np.all(np.asarray(health.is_finite())):
            raise FloatingPointError("the loss or gradient is not finite")
        return float(np.mean(np.asarray(health.loss)))

    def make_evaluation(self) -> Any:
        """A function that evaluates 10,000 images, as a run does after an epoch."""
        step = devices.parallel(
            make_eval_step(self.setting.model, PREPROCESSING, axis_name=devices.AXIS),
            in_axes=(None, None, None, None, 0),
        )

        def evaluate() -> float:
            totals = devices.replicate(Metrics.zero())
            for start in range(0, EVAL_EXAMPLES, EVAL_BATCH):
                indices = np.arange(start, start + EVAL_BATCH, dtype=np.int32) % self._task.examples
                variables = self._state.inference_variables()
                totals = step(variables, totals, *self._examples, indices[None])
            return totals.means()["loss"]

        return evaluate

    def check_loss(self) -> float:
        """Mean loss of the first batch in training, nothing augmented, from the first weights."""
        model, state = self.setting.model.clone(axis_name=None), self.setting.state
        batch = self.setting.batch

        def loss(params: Any, batch_stats: Any) -> jax.Array:
            logits, _ = model.apply(
                {"params": params, "batch_stats": batch_stats},
                PREPROCESSING.evaluate(batch.images),
                train=True,
                progress=0.0,
                mutable=["batch_stats", "penalties"],
            )
            return jnp.mean(cross_entropy(logits, batch.labels, label_smoothing=0.0))

        # A program that runs once is not worth a search for its fastest convolutions. Those that it
        # has then cannot all be recorded as a graph, which flags may ask for (cuDNN's status 5003).
        options = None
        if jax.default_backend() == "gpu":
            options = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_command_buffer": ""}
        return float(jax.jit(loss, compiler_options=options)(state.params, state.batch_stats))


def flops_per_step(setting: steps.Setting) -> float:
    """FLOPs of one step of one run on one device, see `steps.flops`."""
    train_step = make_train_step(
        setting.model.clone(axis_name=None),
        setting.optimizer,
        PREPROCESSING,
        total_steps=steps.TOTAL_STEPS,
    )
    shapes = jax.eval_shape(lambda *args: args, setting.state, setting.batch, setting.key)
    return steps.flops(train_step, *shapes)


def main(text: str) -> None:
    task = Task(**json.loads(text))
    signal.alarm(int(task.ready_seconds))
    runner = Runner(task)
    check_loss = runner.check_loss()
    begin = time.perf_counter()
    runner.call()
    compile_seconds = time.perf_counter() - begin
    evaluate = runner.make_evaluation() if task.evaluate else None
    if evaluate is not None:
        evaluate()
    runner.call()
    flops = flops_per_step(runner.setting)
    signal.alarm(0)

    def turn() -> dict[str, float]:
        begin = time.perf_counter()
        losses = [runner.call()]
        while time.perf_counter() - begin < task.turn_seconds:
            losses.append(runner.call())
        seconds = time.perf_counter() - begin
        taken = len(losses) * task.steps_per_call
        answer = {
            "seconds": seconds,
            "steps": taken,
            "images_per_second": taken * task.batch * task.seeds / seconds,
            "loss": losses[-1],
        }
        if evaluate is not None:
            begin = time.perf_counter()
            evaluate()
            answer["evaluation_seconds"] = time.perf_counter() - begin
        return answer

    sides.serve(
        turn,
        {
            "program": f"fda_jax, jax {jax.__version__} on {jax.devices()[0].device_kind}",
            "compile_seconds": compile_seconds,
            "check_loss": check_loss,
            "flops_per_step": flops,
        },
    )


if __name__ == "__main__":
    main(sys.argv[1])
