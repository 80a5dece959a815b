"""Everything that a run derives from its configuration, in steps; refuses what cannot run."""

import dataclasses
from collections.abc import Sequence

STEPS_LIMIT = 2**31  # they are counted in int32


@dataclasses.dataclass(frozen=True)
class Plan:
    """The numbers of a run. Epochs are known here only; everything else counts steps.

    Training reads one endless stream in which each epoch is a fresh permutation of the training
    set. A batch may reach over the end of an epoch, so every example is seen exactly once an
    epoch whatever the batch size.

    Attributes:
      epochs: passes over the training set, >= 1, in fewer than 2**31 steps.
      batch_size: examples a step, over all devices.
      num_train: examples in the training set.
      num_test: examples in the test set.
      num_devices: devices over all processes.
      steps_per_call: steps inside one compiled call, >= 1.
      eval_batch_size: examples an evaluation step, over all devices.
      eval_every_epochs: evaluations are this many epochs apart.
      checkpoint_every_epochs: checkpoints are at most this many epochs apart.
      diagnose_every_steps: steps that are looked at are this many apart, the first step is one of
        them; 0 for none.
    """

    epochs: int
    batch_size: int
    num_train: int
    num_test: int
    num_devices: int
    steps_per_call: int
    eval_batch_size: int
    eval_every_epochs: int
    checkpoint_every_epochs: int
    diagnose_every_steps: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{field.name} is {value!r}, but must be a whole number")
        require(self.epochs >= 1, "train.epochs", self.epochs, "must be at least 1")
        require(
            1 <= self.batch_size <= self.num_train,
            "train.batch_size",
            self.batch_size,
            f"must lie between 1 and the {self.num_train} training examples",
        )
        require(
            self.total_steps < STEPS_LIMIT,
            "train.epochs",
            self.epochs,
            f"makes {self.total_steps} steps, and a run has fewer than 2**31",
        )
        _require_divisible("train.batch_size", self.batch_size, self.num_devices)
        require(self.eval_batch_size >= 1, "eval.batch_size", self.eval_batch_size, "must be >= 1")
        _require_divisible("eval.batch_size", self.eval_batch_size, self.num_devices)
        for name, value in (
            ("train.steps_per_call", self.steps_per_call),
            ("eval.every_epochs", self.eval_every_epochs),
            ("checkpoint.every_epochs", self.checkpoint_every_epochs),
        ):
            require(value >= 1, name, value, "must be at least 1")
        every = self.diagnose_every_steps
        require(every >= 0, "diagnostics.every_steps", every, "must not be negative; 0 is off")

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.end_of_epoch(self.epochs)

    @property
    def rows_per_call(self) -> int:
        """Steps that a call is given examples for; no call goes beyond an epoch."""
        return min(self.steps_per_call, self.end_of_epoch(1))

    @property
    def eval_steps(self) -> int:
        """Steps that cover the test set, the last batch padded."""
        return -(-self.num_test // self.eval_batch_size)

    def end_of_epoch(self, epoch: int) -> int:
        """Number of steps after which `epoch` whole epochs (1, 2, ...) have been seen."""
        return -(-epoch * self.num_train // self.batch_size)

    def epoch_of_step(self, step: int) -> int:
        """Epoch (1, 2, ...) that the step after `step` finished steps belongs to."""
        return step * self.batch_size // self.num_train + 1

    def is_diagnosed(self, step: int) -> bool:
        """Whether the step after `step` finished steps is looked at."""
        return self.diagnose_every_steps > 0 and step % self.diagnose_every_steps == 0

    def steps_of(self, epochs: float) -> int:
        """A length in epochs as a whole number of steps."""
        return round(epochs * self.num_train / self.batch_size)


def require(condition: bool, key: str, value: object, limit: str) -> None:
    """Raise a ValueError that names the key, its value and the limit unless the condition holds."""
    if not condition:
        raise ValueError(f"{key} is {value}, but it {limit}: set --config.{key}")


def choose(key: str, value: str, choices: Sequence[str]) -> None:
    """Raise a ValueError unless the value is one of the choices."""
    require(value in choices, key, repr(value), f"must be one of {', '.join(choices)}")


def _require_divisible(key: str, value: int, devices: int) -> None:
    below = value - value % devices
    nearest = f"{below} or {below + devices}" if below else str(devices)
    require(
        value % devices == 0,
        key,
        value,
        f"must be divisible by the {devices} devices (use {nearest})",
    )
