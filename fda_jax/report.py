"""Tables and curves of runs: python -m fda_jax.report DIR... [--out DIR]."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fda_jax.experiment import figures, tables
from fda_jax.experiment.folder import WorkdirError


def main(argv: Sequence[str] | None = None) -> int:
    """Write report.md and curves.png, and print the tables.

    Args:
      argv: the words of the command line; None takes the process's own.

    Returns:
      Exit code: 0, or 1 if a folder cannot be read or written.
    """
    flags = _flags(argv)
    try:
        groups = tables.group_runs(tables.read_runs(flags.folders))
        text = tables.markdown(groups)
        report, curves = _write(flags.out or flags.folders[0], text, groups)
    except WorkdirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{text}\nTables: {report}\nCurves: {curves}")
    return 0


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fda_jax.report", description="Tables and curves of runs."
    )
    parser.add_argument(
        "folders",
        nargs="+",
        type=Path,
        metavar="DIR",
        help="a run's folder (its --workdir), or a folder that holds some at any depth",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where report.md and curves.png go; the first DIR if not given",
    )
    return parser.parse_args(argv)


def _write(out: Path, text: str, groups: Sequence[tables.Group]) -> tuple[Path, Path]:
    report, curves = out / "report.md", out / "curves.png"
    try:
        out.mkdir(parents=True, exist_ok=True)
        figures.draw_curves(groups, curves)
        report.write_text(
            f"{text}\n![Test accuracy and training loss]({curves.name})\n", encoding="utf-8"
        )
    except OSError as error:
        raise WorkdirError(
            f"the report cannot be written to {out} ({error.strerror}): choose another --out"
        ) from error
    return report, curves


if __name__ == "__main__":
    sys.exit(main())
