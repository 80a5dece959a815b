"""Tables and pictures of runs, or of a sweep: python -m fda_jax.report DIR... [--out DIR]."""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fda_jax.experiment import comparison, figures, tables
from fda_jax.experiment.folder import WorkdirError


def main(argv: Sequence[str] | None = None) -> int:
    """Write report.md and curves.png, and print the tables.

    A sweep's folder, given alone, is reported as one: its runs side by side in one table, and a
    picture with the sweep's name.

    Args:
      argv: the words of the command line; None takes the process's own.

    Returns:
      Exit code: 0, or 1 if a folder cannot be read or written.
    """
    flags = _flags(argv)
    try:
        out = flags.out or flags.folders[0]
        if len(flags.folders) == 1 and comparison.is_sweep(flags.folders[0]):
            text, report, picture = _report_sweep(flags.folders[0], out)
        else:
            text, report, picture = _report_runs(flags.folders, out)
    except WorkdirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{text}\nTables: {report}\nCurves: {picture}")
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
        help="where report.md and the picture go; the first DIR if not given",
    )
    return parser.parse_args(argv)


def _report_runs(folders: Sequence[Path], out: Path) -> tuple[str, Path, Path]:
    """The text, and where it and the curves were written."""
    groups = tables.group_runs(tables.read_runs(folders))
    text = tables.markdown(groups)
    curves = out / "curves.png"
    with _writing(out):
        figures.draw_curves(groups, curves)
        report = _write(out, text, "Test accuracy and training loss", curves)
    return text, report, curves


def _report_sweep(folder: Path, out: Path) -> tuple[str, Path, Path]:
    """The text, and where it and the picture were written."""
    found = comparison.read(folder)
    text = comparison.markdown(found)
    picture = out / f"{found.name}.png"
    with _writing(out):
        figures.draw_comparison(found, picture, picture.with_suffix(".svg"))
        report = _write(out, text, "Accuracy, time, flips and loss of every run", picture)
    return text, report, picture


def _write(out: Path, text: str, caption: str, picture: Path) -> Path:
    report = out / "report.md"
    report.write_text(f"{text}\n![{caption}]({picture.name})\n", encoding="utf-8")
    return report


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Make the folder, and say where a report cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise WorkdirError(
            f"the report cannot be written to {out} ({error.strerror}): choose another --out"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
