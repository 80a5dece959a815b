"""Tables and pictures of runs, or of a sweep: python -m fda_jax.report DIR... [--out DIR].

python -m fda_jax.report runs/fda runs/ste --out=runs
python -m fda_jax.report runs/table2
python -m fda_jax.report --index results
python -m fda_jax.report --figure1 docs/images
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fda_jax.experiment import (
    comparison,
    comparison_table,
    figures,
    paper_figures,
    sweep_figures,
    tables,
)
from fda_jax.experiment.folder import WorkdirError, from_words
from fda_jax.experiment.logs import quiet_pipe

# What a person has to say of some runs, in their folder: stands on the page of `--index` as it is.
NOTES = "notes.md"
_HEADING = "# What has been measured"
_INDEX = f"""{_HEADING}

Written by

    {{command}}

from the folders beside this file. Each holds, for every run, its config.json, environment.json
(packages, device, revision, command), metrics.jsonl (the whole curve) and result.json; its report
says more. {{legends}} Given are mean and standard deviation over n seeds, and differences of
pairs of runs with the same seed."""


@quiet_pipe
def main(argv: Sequence[str] | None = None) -> int:
    """Write report.md and pictures (PNG and SVG), and print the tables.

    A sweep's folder, given alone, is reported as one: its runs side by side in one table, and
    pictures with the sweep's name. `--index` does so for every folder in one, and writes a page of
    all of them.

    Args:
      argv: the words of the command line; None takes the process's own.

    Returns:
      Exit code: 0, or 1 if a folder cannot be read or written, or holds what does not belong into
      one table.
    """
    flags = _flags(argv)
    try:
        if flags.figure1:
            text, written = _draw_figure1(flags.figure1)
        elif flags.index:
            text, written = _report_index(flags.index, mixed_revisions=flags.mixed_revisions)
        else:
            out = flags.out or flags.folders[0]
            is_sweep = len(flags.folders) == 1 and comparison.is_sweep(flags.folders[0])
            report = _report_sweep if is_sweep else _report_runs
            text, written = report(flags.folders, out, mixed_revisions=flags.mixed_revisions)
    except WorkdirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([text, *(f"{what}: {path}" for what, path in written.items())]).lstrip("\n"))
    return 0


def _flags(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fda_jax.report", description="Tables and curves of runs."
    )
    parser.add_argument(
        "folders",
        nargs="*",
        type=from_words,
        metavar="DIR",
        help="a sweep's folder, a run's (its --workdir), or one that holds some at any depth",
    )
    parser.add_argument(
        "--out",
        type=from_words,
        metavar="DIR",
        help="where report.md and the pictures go; the first DIR if not given",
    )
    parser.add_argument(
        "--mixed-revisions",
        action="store_true",
        help="let runs of different code into one table, which names the revision of each",
    )
    parser.add_argument(
        "--figure1",
        type=from_words,
        metavar="DIR",
        help="draw FDA-BNN's Figure 1 into this folder instead: functions and their spectra",
    )
    parser.add_argument(
        "--index",
        type=from_words,
        metavar="DIR",
        help="report every folder of runs in this one, and all of them on one page, its README.md",
    )
    flags = parser.parse_args(argv)
    if sum(map(bool, (flags.folders, flags.figure1, flags.index))) != 1:
        parser.error("give folders of runs, or --index or --figure1 and a folder alone")
    return flags


def _report_runs(
    folders: Sequence[Path], out: Path, *, mixed_revisions: bool
) -> tuple[str, Mapping[str, Path]]:
    """The text, and where it and the curves were written."""
    groups = tables.group_runs(tables.read_runs(folders))
    if not mixed_revisions:
        for group in groups:
            tables.check_revisions(run for part in group.configurations for run in part.runs)
    text = tables.markdown(groups)
    curves = out / "curves.png"
    with _writing(out):
        figures.draw_curves(groups, curves, curves.with_suffix(".svg"))
        report = _write(out, text, {"Accuracy and training loss": curves})
    return text, {"Tables": report, "Curves": curves}


def _report_sweep(
    folders: Sequence[Path], out: Path, *, mixed_revisions: bool
) -> tuple[str, Mapping[str, Path]]:
    """The text, and where it and the pictures were written."""
    found = comparison.read(folders[0], mixed_revisions=mixed_revisions)
    text = comparison_table.markdown(found, mixed_revisions=mixed_revisions)
    drawn = {"Accuracy, differences, time and curves of every run": out / f"{found.name}.png"}
    with _writing(out):
        for picture in drawn.values():
            sweep_figures.draw_comparison(found, picture, picture.with_suffix(".svg"))
        if found.points:
            picture = out / f"{found.name}_points.png"
            sweep_figures.draw_points(found, picture, picture.with_suffix(".svg"))
            drawn = {f"Accuracy and time against {found.axis}": picture, **drawn}
        report = _write(out, text, drawn)
    return text, {"Tables": report, **drawn}


def _report_index(folder: Path, *, mixed_revisions: bool) -> tuple[str, Mapping[str, Path]]:
    """The text of the page, and where it and the report of each folder were written."""
    inside = sorted(path for path in folder.glob("[!.]*") if path.is_dir())
    folders = [path for path in inside if tables.holds_runs(path)]
    if not folders:
        raise WorkdirError(
            f"no folder in {folder} holds runs: give the folder that holds the --workdir of one or "
            "more sweeps"
        )
    page = folder / "README.md"
    if page.is_file() and not page.read_bytes().startswith(_HEADING.encode()):
        raise WorkdirError(f"{page} is not a page of --index: move it away, or it would be lost")
    command = f"python -m fda_jax.report --index {folder}" + " --mixed-revisions" * mixed_revisions
    legends = tables.legends(run.eval_split for run in tables.read_runs(folders))
    written, parts = {}, [_INDEX.format(command=command, legends=legends)]
    for part in folders:
        is_sweep = comparison.is_sweep(part)
        report, summary = (
            (_report_sweep, _sum_up_sweep) if is_sweep else (_report_runs, _sum_up_runs)
        )
        _, files = report([part], part, mixed_revisions=mixed_revisions)
        written[part.name] = files["Tables"]
        parts.append(f"## [{part.name}]({part.name}/report.md)")
        parts.append(summary(part, mixed_revisions=mixed_revisions))
        parts += [
            f"![{what}]({part.name}/{path.name})"
            for what, path in files.items()
            if path.suffix == ".png"
        ]
        notes = part / NOTES
        if notes.is_file():
            parts.append(notes.read_text(encoding="utf-8").strip("\n"))
    text = "\n\n".join(parts) + "\n"
    with _writing(folder):
        page.write_text(text, encoding="utf-8")
    skipped = {f"No run in {path.name}": path for path in inside if path not in folders}
    return text, {**written, **skipped, "Page": page}


def _sum_up_sweep(folder: Path, *, mixed_revisions: bool) -> str:
    found = comparison.read(folder, mixed_revisions=mixed_revisions)
    return comparison_table.summary(found, mixed_revisions=mixed_revisions)


def _sum_up_runs(folder: Path, *, mixed_revisions: bool) -> str:
    del mixed_revisions  # the table has a column of revisions in any case
    return tables.summary(tables.group_runs(tables.read_runs([folder])))


def _draw_figure1(out: Path) -> tuple[str, Mapping[str, Path]]:
    picture = out / "figure1.png"
    with _writing(out):
        paper_figures.draw_spectra(picture, picture.with_suffix(".svg"))
    return "", {"Figure 1": picture}


def _write(out: Path, text: str, pictures: Mapping[str, Path]) -> Path:
    report = out / "report.md"
    shown = "\n\n".join(f"![{caption}]({path.name})" for caption, path in pictures.items())
    report.write_text(f"{text}\n{shown}\n", encoding="utf-8")
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
