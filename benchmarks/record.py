"""What every benchmark shares: its flags, and the JSON that the README is made from."""

import argparse
import dataclasses
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from fda_jax.experiment.environment import environment
from fda_jax.experiment.folder import from_words


def parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark: --out, --tiny and --remark."""
    made = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog=doc.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--out", type=from_words, required=True, help="folder of the results")
    made.add_argument(
        "--tiny",
        action="store_true",
        help="sizes at which every line runs and nothing is measured; the record says so",
    )
    made.add_argument(
        "--remark", default="", help="to stand with the record, e.g. what else ran on the machine"
    )
    return made


@dataclasses.dataclass
class Table:
    """One table of a record.

    Attributes:
      title: a line above it.
      columns: names, with the unit where there is one; the first holds what the row is.
      rows: cells, numbers or words; None for what could not be measured.
      note: how to read it.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclasses.dataclass
class Goal:
    """A limit that was set before the measurement.

    Attributes:
      what: the quantity and its limit, in words.
      measured: what came out, with its unit; None where the machine lacks what it takes.
      met: whether the limit is kept; None where nothing was measured.
    """

    what: str
    measured: str | None
    met: bool | None


@dataclasses.dataclass
class Record:
    """The result of a benchmark, written as OUT/NAME.json.

    Attributes:
      name: of the file, and of the benchmark's script.
      question: that it answers, one sentence.
      answer: the sentence or two that a reader in a hurry needs, made from the measured numbers.
      tables: what was measured.
      goals: limits and outcomes.
      figures: names of pictures in the same folder.
      details: raw numbers (every time and loss), as JSON values.
    """

    name: str
    question: str
    answer: str = ""
    tables: list[Table] = dataclasses.field(default_factory=list)
    goals: list[Goal] = dataclasses.field(default_factory=list)
    figures: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def write(self, args: argparse.Namespace) -> Path:
        """Write the JSON file; it holds the command, the packages, the device and the revision."""
        args.out.mkdir(parents=True, exist_ok=True)
        path = args.out / f"{self.name}.json"
        made_with = environment()
        del made_with["command"]
        words = [_without_folders(word) for word in sys.argv[1:]]
        content = {
            **dataclasses.asdict(self),
            "command": f"python benchmarks/{self.name}.py {shlex.join(words)}".strip(),
            "tiny": args.tiny,
            "remark": args.remark,
            "environment": made_with,
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        return path


def _without_folders(word: str) -> str:
    """A flag whose value is an absolute path, with the path's last name alone."""
    flag, _, value = word.rpartition("=")
    if not Path(value).is_absolute():
        return word
    return f"{flag}={Path(value).name}" if flag else Path(value).name
