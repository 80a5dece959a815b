"""Each notebook is what its script says, shows its pictures, and tells nothing of who ran it."""

import base64
import json
import re

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted((REPOSITORY / "notebooks").glob("*.py"))
every_notebook = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
HEADER = re.compile(r"# ---\n.*?\n# ---\n", re.DOTALL)
PNG = b"\x89PNG\r\n\x1a\n"


def notebook(script):
    return json.loads(script.with_suffix(".ipynb").read_text())


def pictures(cell):
    shown = [output.get("data", {}) for output in cell.get("outputs", [])]
    return [base64.b64decode("".join(data["image/png"])) for data in shown if "image/png" in data]


def commented(line):
    return f"# {line}".rstrip()


def percent(cell):
    """A cell as it stands in a percent script."""
    lines = "".join(cell["source"]).splitlines()
    if cell["cell_type"] == "markdown":
        return ["# %% [markdown]", *map(commented, lines)]
    return ["# %%", *lines]


def test_there_are_five_pairs_and_nothing_else():
    assert len(SCRIPTS) == 5
    names = {path.name for path in (REPOSITORY / "notebooks").glob("[!._]*") if path.is_file()}
    assert names == {path.with_suffix(end).name for path in SCRIPTS for end in (".py", ".ipynb")}


@every_notebook
def test_the_cells_of_a_notebook_are_those_of_its_script(script):
    said = [line for cell in notebook(script)["cells"] for line in percent(cell)]
    written = HEADER.sub("", script.read_text(), count=1).splitlines()
    # Between cells there are as many empty lines as the formatter likes.
    assert [line for line in said if line] == [line for line in written if line]


@every_notebook
def test_a_notebook_opens_with_a_question_and_ends_with_a_figure_and_its_answer(script):
    cells = notebook(script)["cells"]
    opening = "".join(cells[0]["source"])
    assert opening.startswith("# ")
    assert "**Question.**" in opening
    assert "?" in opening
    assert pictures(cells[-2])
    (answer,) = cells[-1]["outputs"]
    assert "**Answer.**" in "".join(answer["data"]["text/markdown"])


@every_notebook
def test_every_cell_ran_in_order_without_an_error(script):
    code = [cell for cell in notebook(script)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert {output["output_type"] for cell in code for output in cell["outputs"]} <= {
        "execute_result",
        "display_data",
        "stream",
    }


@every_notebook
def test_a_notebook_is_small_and_holds_only_what_its_cells_say(script):
    path = script.with_suffix(".ipynb")
    assert path.stat().st_size < 400_000
    whole = notebook(script)
    assert whole["metadata"]["language_info"] == {"name": "python"}
    for number, cell in enumerate(whole["cells"]):
        assert cell["id"] == f"cell-{number:02d}"
        assert cell["metadata"] == {}
        for png in pictures(cell):
            assert png.startswith(PNG)
            assert b"matplotlib" not in png[:200].lower()
    for cell in whole["cells"]:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)  # its letters may spell anything
    text = json.dumps(whole)
    for stray in (str(REPOSITORY), "/tmp", "/home", "/root", " at 0x"):
        assert stray not in text, stray


@every_notebook
def test_the_readme_leads_to_each_notebook(script):
    assert f"](notebooks/{script.stem}.ipynb)" in (REPOSITORY / "README.md").read_text()
