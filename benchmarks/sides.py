"""Two programs measured side by side: each is a process of its own, and they take turns.

A machine that others use too gives no absolute time worth reading; a ratio of medians of turns
that alternate does. A worker calls `serve`; the benchmark starts it as a `Side` and calls
`alternate`. While one works the other sleeps on its standard input.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class SideError(RuntimeError):
    """A worker ended without an answer; the message holds the end of what it printed."""


class Side:
    """A worker process.

    Args:
      command: program and arguments; a Python file is run by this interpreter.
      environment: variables to set on top of this process's own.
      wait: until the worker is ready; otherwise call `wait` before the first turn.

    Attributes:
      facts: what the worker told about itself when it was ready, "start_seconds" included: from
        the start of the process until then.
    """

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        wait: bool = True,
    ) -> None:
        program = [sys.executable, *command] if command[0].endswith(".py") else list(command)
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        self._begin = time.perf_counter()
        self._process = subprocess.Popen(
            program,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **(environment or {})},
        )
        self.facts: dict[str, Any] = {}
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when the worker is ready."""
        facts = self._answer()
        self.facts = {**facts, "start_seconds": time.perf_counter() - self._begin}

    def turn(self) -> dict[str, Any]:
        """Let the worker do one turn; what it answers."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer that is missing below says so
        return self._answer()

    def close(self) -> None:
        """End the worker, and what it started where it leads a process group, as `timeout` does."""
        process = self._process
        if process.poll() is None and os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        printed = []
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
            printed.append(line)
        code = self._process.wait()
        raise SideError(
            f"{' '.join(map(str, self._process.args))} ended with exit code {code} "
            f"before its answer: {''.join(printed[-20:])}"
        )


class Company:
    """Workers that take their turn at once, as one side.

    Args:
      members: at least one.

    Attributes:
      facts: the first worker's.
    """

    def __init__(self, members: Sequence[Side]) -> None:
        self._members = members
        self.facts = members[0].facts

    def turn(self) -> dict[str, Any]:
        """Let all work; steps and seconds of the longest, images of all in these seconds."""
        with ThreadPoolExecutor(len(self._members)) as pool:
            answers = list(pool.map(Side.turn, self._members))
        longest = max(answers, key=lambda answer: answer["seconds"])
        images = sum(answer["seconds"] * answer["images_per_second"] for answer in answers)
        return {**longest, "images_per_second": images / longest["seconds"]}

    def close(self) -> None:
        """End the workers."""
        for member in self._members:
            member.close()


def add_torch_python(parser: argparse.ArgumentParser) -> None:
    """The flag that says where PyTorch is."""
    parser.add_argument(
        "--torch-python",
        type=os.path.expanduser,
        default=sys.executable,
        help="an interpreter that has PyTorch",
    )


def has_torch(python: str) -> bool:
    """Whether an interpreter has PyTorch."""
    try:
        return not subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    except OSError:  # there is no such program
        return False


def check_torch(python: str) -> None:
    """End the program, in words, where an interpreter has no PyTorch."""
    if not has_torch(python):
        sys.exit(
            f"{python} cannot import torch: name an interpreter that can by --torch-python, "
            "or run `pip install torch==2.13.0`"
        )


def serve(turn: Callable[[], Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """The worker's end: answer with the facts, then with one turn for each line that comes in."""
    print(json.dumps(dict(facts)), flush=True)
    for _ in sys.stdin:
        print(json.dumps(dict(turn())), flush=True)


def alternate(
    turns: Mapping[str, Callable[[], Mapping[str, Any]]], rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Every side takes a turn in each round, in an order that is drawn anew each time.

    Args:
      turns: what a side does in its turn, by its name; the answer holds "seconds".
      rounds: turns of each.

    Returns:
      The answers of each side, in the order of the rounds.
    """
    order = random.Random(0)
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name in order.sample(list(turns), len(turns)):
            answers[name].append(dict(turns[name]()))
    return answers


def ratio(
    of: Sequence[Mapping[str, Any]], to: Sequence[Mapping[str, Any]], key: str = "seconds"
) -> float:
    """Ratio of the medians of two sides."""
    return median(of, key) / median(to, key)


def median(answers: Sequence[Mapping[str, Any]], key: str = "seconds") -> float:
    """Median of one number over a side's turns."""
    return statistics.median(answer[key] for answer in answers)
