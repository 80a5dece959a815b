"""What a person sees of a run: lines on the terminal, and TensorBoard's events."""

import contextlib
import functools
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TextIO

from tensorboardX import SummaryWriter

from fda_jax.experiment.folder import leaves

_P = ParamSpec("_P")
# Exit code of a process that the signal of a closed pipe ends, as a shell gives it.
PIPE_CLOSED = 141


def quiet_pipe(main: Callable[_P, int]) -> Callable[_P, int]:
    """A command that ends without a word when nobody reads on, as in `... | head`."""

    @functools.wraps(main)
    def command(*args: _P.args, **kwargs: _P.kwargs) -> int:
        try:
            code = main(*args, **kwargs)
            sys.stdout.flush()
        except BrokenPipeError:
            _to_nowhere(sys.stdout)
            return PIPE_CLOSED
        return code

    return command


def _to_nowhere(out: TextIO) -> None:
    """Let go nowhere what is written from here on, as by Python at its exit what is left."""
    with contextlib.suppress(OSError):  # not every stream is a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


class Terminal:
    """One line an epoch, and a line that is overwritten in between where a person watches.

    Where nothing can be written any more, as in `... | head`, it is silent from there on.

    Args:
      total_steps: of the run.
      is_writer: whether this process prints; with several processes only the first does.
      out: where to.
      name: stands before each line, where several runs share a terminal; "" for nothing.
      eval_split: what an epoch's second accuracy is of, of `data.EVAL_SPLITS`.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        is_writer: bool = True,
        out: TextIO | None = None,
        name: str = "",
        eval_split: str = "test",
    ) -> None:
        self._eval_split = eval_split
        self._name = f"[{name}] " if name else ""
        self._out = out or sys.stdout
        self._total = total_steps
        self._is_writer = is_writer
        self._live = self._out.isatty()
        self._start: tuple[float, int] | None = None

    def line(self, text: str) -> None:
        """Print a line that stays."""
        clear = "\r\x1b[2K" if self._live else ""
        self._write(f"{clear}{self._name}{text}\n")

    def tick(self, epoch: int, step: int, means: Mapping[str, float]) -> None:
        """Show how far the run is, on a line that the next one overwrites."""
        now = time.monotonic()
        if self._start is None:  # the first tick comes after compilation
            self._start = (now, step)
        if self._live:
            self._write(
                f"\r\x1b[2K{self._name}epoch {epoch}  step {step}/{self._total}  "
                f"loss {means['loss']:.4f}  accuracy {means['accuracy']:.2%}  {self.left(step)}"
            )

    def epoch(
        self,
        number: int,
        epochs: int,
        train: Mapping[str, float],
        test: Mapping[str, float] | None,
        step: int,
        images_per_second: float,
    ) -> None:
        """Print an epoch's line; a speed of 0 is one that nobody knows yet."""
        speed = f"{images_per_second:,.0f}" if images_per_second else "unknown"
        tested = f"  {self._eval_split} {told(test)}" if test else ""
        self.line(
            f"epoch {number:>{len(str(epochs))}}/{epochs}  train {told(train)}{tested}  "
            f"{speed} images/s  {self.left(step)}"
        )

    def left(self, step: int) -> str:
        """The time that the rest of the run will take at the pace so far."""
        if self._start is None or step <= self._start[1]:
            return "time left unknown"
        seconds = (time.monotonic() - self._start[0]) / (step - self._start[1])
        return f"{duration(seconds * (self._total - step))} left"

    def _write(self, text: str) -> None:
        if self._is_writer:
            try:
                self._out.write(text)
                self._out.flush()
            except OSError:  # which ends no training
                self._is_writer = False
                _to_nowhere(self._out)


class TensorBoard:
    """TensorBoard's scalar events.

    Args:
      folder: where the event files go.
      step: the run goes on from here; events of later steps are marked as superseded.
      is_writer: whether this process writes.
    """

    def __init__(self, folder: Path, *, step: int, is_writer: bool = True) -> None:
        self._writer = (
            SummaryWriter(str(folder), purge_step=step + 1 if step else None) if is_writer else None
        )

    def write(self, row: Mapping[str, Any]) -> None:
        """Write a row of metrics.jsonl: each number becomes the scalar split/name, or of a group
        of numbers split/group/name. Events that cannot be written cost a warning, not the run."""
        if self._writer is None:
            return
        try:
            for name, value in leaves(row, separator="/").items():
                if isinstance(value, float) and math.isfinite(value):
                    self._writer.add_scalar(f"{row['split']}/{name}", value, row["step"])
            self._writer.flush()
        except OSError as error:
            print(f"warning: TensorBoard's events end here ({error})", file=sys.stderr)
            self._writer = None

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


def told(means: Mapping[str, float]) -> str:
    """Loss and accuracy as a person reads them, and the top-5 accuracy where it is counted."""
    top5 = f" (top 5: {means['top5_accuracy']:.2%})" if "top5_accuracy" in means else ""
    return f"loss {means['loss']:.4f} accuracy {means['accuracy']:.2%}{top5}"


def duration(seconds: float) -> str:
    """A length of time as a person says it: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
