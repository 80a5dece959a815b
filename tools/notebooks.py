"""Runs the scripts of notebooks/ and keeps what they show beside them, as .ipynb of the same name.

    python tools/notebooks.py [NAME...]           # run and write
    python tools/notebooks.py --check [NAME...]   # run, compare the sources, write nothing

NAME is a script's name without its ending; all of them by default. Needs the extra `notebooks`.
A notebook holds nothing that changes from one writing to the next but what its cells computed: no
times, no random ids, no version of the Python that ran it.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
# Of one cell; it ends a cell that hangs.
TIMEOUT_SECONDS = 300
# A cell that raises, one that hangs, a kernel that dies.
FAILURES = (CellControlSignal, DeadKernelError)
METADATA = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def main(words: Sequence[str] | None = None) -> int:
    """Do what the command line says; the exit code is 1 if a check found something."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args(words)
    known = {path.stem: path for path in sorted(FOLDER.glob("*.py"))}
    for name in asked.names:
        if name not in known:
            parser.error(f"there is no notebook {name!r}: use one of {', '.join(known)}")
    scripts = [known[name] for name in asked.names or known]
    # Each has a kernel of its own; two keep two cores busy.
    with ThreadPoolExecutor(2) as pool:
        complaints = list(pool.map(functools.partial(refresh, check=asked.check), scripts))
    return int(any(complaints))


def refresh(script: Path, *, check: bool) -> str:
    """Run a script and write its notebook, or compare the two; what is wrong, or ""."""
    target, fresh = script.with_suffix(".ipynb"), read_script(script)
    complaint = ""
    try:
        run(fresh)
    except FAILURES as error:
        complaint = f"{script.name} fails:\n{error}"
    else:
        if not check:
            nbformat.write(fresh, target)
        elif not target.exists() or sources(nbformat.read(target, as_version=4)) != sources(fresh):
            complaint = f"{target.name} is not what {script.name} says: write it again"
    print(complaint or target.name, file=sys.stderr if complaint else sys.stdout, flush=True)
    return complaint


def read_script(script: Path) -> nbformat.NotebookNode:
    """The notebook of a percent script, without outputs; its cells are numbered for their ids."""
    notebook = nbformat.v4.new_notebook(metadata=METADATA)
    notebook.cells = jupytext.read(script).cells
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {}
    return notebook


def run(notebook: nbformat.NotebookNode) -> None:
    """Fill in the outputs, with a kernel of the Python that runs this, beside the scripts.

    Raises:
      FAILURES: one of them.
    """
    NotebookClient(
        notebook,
        timeout=TIMEOUT_SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    ).execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        # Warnings are of the machine that ran it.
        cell.outputs = [o for o in cell.get("outputs", []) if o.get("name") != "stderr"]
        if cell.cell_type != "code":
            del cell["outputs"]


def sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str, str]]:
    """What a notebook says, without what its cells computed."""
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


if __name__ == "__main__":
    sys.exit(main())
