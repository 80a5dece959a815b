"""Runs side by side: each is a process of its own that sees one of this machine's devices."""

import collections
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from fda_jax.experiment.loop import Stop

COMMAND = (sys.executable, "-m", "fda_jax.experiment.worker")
_PROBE = "import jax; print(jax.default_backend(), jax.local_device_count())"
# Begins the line on which a worker says why its run failed.
WHY = "run failed: "
_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
      name: short, for the terminal.
      config: its configuration.
      workdir: its folder.
    """

    name: str
    config: Mapping[str, Any]
    workdir: Path


def pins() -> list[dict[str, str]]:
    """Environment variables that pin a process to each of several local devices.

    Where there are several, this process leaves them alone from here on and computes on the CPU,
    because it would take a part of their memory. Call it before JAX starts its backend.

    Returns:
      Variables for each device; empty where there is one device, or one that cannot be shared out
      (only GPUs and simulated CPU devices can).
    """
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        capture_output=True,
        text=True,
        env={**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
    )
    words = done.stdout.split()
    backend, count = (words[-2], int(words[-1])) if done.returncode == 0 else ("none", 0)
    if count < 2 or backend not in ("cpu", "gpu"):
        return []
    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = _without_simulated(os.environ.get("XLA_FLAGS", ""))
    jax.config.update("jax_num_cpu_devices", 1)
    if backend == "cpu":
        return [{"JAX_NUM_CPU_DEVICES": "1"} for _ in range(count)]
    names = ("JAX_CUDA_VISIBLE_DEVICES", "JAX_ROCM_VISIBLE_DEVICES")
    return [dict.fromkeys(names, str(number)) for number in range(count)]


def train(
    jobs: Sequence[Job],
    environments: Sequence[Mapping[str, str]],
    *,
    stop: Stop,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Run jobs until all are done, as many at a time as there are environments.

    A process that fails or is killed costs its own run alone. When `stop` is asked, every process
    is, and saves a checkpoint. Should this process be killed, the others do the same by themselves.

    Args:
      jobs: in the order in which they start.
      environments: variables of each process that runs at a time.
      stop: whether to stop.
      say: prints a line.

    Returns:
      Why each failed job failed, by name.
    """
    waiting = collections.deque(enumerate(jobs, start=1))
    running: dict[int, _Process] = {}
    failures: dict[str, str] = {}
    while running or (waiting and not stop.asked):
        for place, variables in enumerate(environments):
            if place not in running and waiting and not stop.asked:
                number, job = waiting.popleft()
                say(f"run {number}/{len(jobs)}: {job.name} on device {place}")
                running[place] = _Process(job, variables, say)
        for place, process in list(running.items()):
            if stop.asked:
                process.ask_to_stop()
            if not process.has_ended():
                continue
            del running[place]
            reason = process.reason()
            if stop.asked and process.was_terminated():
                say(
                    f"run {process.name} was ended by the signal before it could save: the same "
                    "command goes on from its last checkpoint"
                )
            elif reason:
                failures[process.name] = reason
                say(f"run {process.name} failed: {reason}")
        time.sleep(_POLL_SECONDS)
    return failures


def as_override(words: str) -> str:
    """A message of a run that names keys as its command line sets them, for a sweep's."""
    return words.replace("--config.", "--override=")


class _Process:
    """A worker with its job, and a thread that passes on what it prints."""

    def __init__(self, job: Job, variables: Mapping[str, str], say: Callable[[str], None]) -> None:
        self.name = job.name
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **variables, "PYTHONPATH": path},
        )
        self._why = ""
        self._last = "its process printed nothing"
        self._asked = False
        self._thread = threading.Thread(target=self._pass_on, args=(say,), daemon=True)
        self._thread.start()
        order = {"argv": sys.argv, "config": dict(job.config), "workdir": str(job.workdir)}
        assert self._process.stdin is not None
        try:
            # It stays open: its end tells the worker that this process is gone.
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its exit code says so

    def ask_to_stop(self) -> None:
        if not self._asked:
            self._asked = True
            self._process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        if self._process.poll() is None:
            return False
        self._thread.join()
        return True

    def was_terminated(self) -> bool:
        return self._process.returncode == -signal.SIGTERM

    def reason(self) -> str:
        """Why it failed; "" if it did not."""
        code = self._process.returncode
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        # What libraries print at the exit of a process comes after the sentence.
        words = self._why or self._last
        return f"{words} (exit code {code})" if code > 1 else words if code else ""

    def _pass_on(self, say: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._last = line.rstrip()
            if self._last.startswith(WHY):
                self._why = self._last.removeprefix(WHY)
            say(f"[{self.name}] {self._last}")


def _without_simulated(flags: str) -> str:
    return re.sub(r"--xla_force_host_platform_device_count=\d+", "", flags).strip()
