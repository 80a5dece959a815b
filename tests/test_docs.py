"""Pages link to what exists, and the project speaks of itself alone."""

import ast
import inspect
import re
import subprocess

import pytest

from tests.conftest import REPOSITORY

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "results/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
METHODS_PAGE = REPOSITORY / "docs" / "methods.md"
PICTURES = METHODS_PAGE.parent / "images" / "methods"
SECTION = re.compile(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
KNOBS = re.compile(r"^- Knobs: (?:none|`([^`]*)`)$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page):
    links = [link for link in LINK.findall(page.read_text()) if not link.startswith("http")]
    for link in links:
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


def test_the_readme_shows_every_method_and_every_network():
    from fda_jax import layers, models

    readme = (REPOSITORY / "README.md").read_text()
    for name in (*layers.METHODS, *models.MODELS):
        assert f"`{name}`" in readme, name


def test_the_page_of_methods_has_a_section_for_each_and_no_other():
    from fda_jax.layers import METHODS

    page = METHODS_PAGE.read_text()
    names = [name for name, _ in SECTION.findall(page)]
    assert sorted(names) == sorted(METHODS)
    assert {*re.findall(r"\(#(\w+)\)", page)} <= {*names}


def test_the_page_of_methods_states_the_defaults_of_every_row():
    from fda_jax.layers import METHODS

    for name, section in SECTION.findall(METHODS_PAGE.read_text()):
        (stated,) = KNOBS.findall(section)
        call = ast.parse(f"method({stated})", mode="eval").body
        knobs = [(knob.arg, ast.literal_eval(knob.value)) for knob in call.keywords]
        parameters = inspect.signature(METHODS[name]).parameters.values()
        assert knobs == [(knob.name, knob.default) for knob in parameters], name


def test_every_method_has_a_small_picture_in_its_section():
    from fda_jax.layers import METHODS

    for name, section in SECTION.findall(METHODS_PAGE.read_text()):
        assert f"](images/methods/{name}.png)" in section
        assert (PICTURES / f"{name}.png").stat().st_size < 60_000
    assert {path.stem for path in PICTURES.iterdir()} == {*METHODS, "quantization_error"}


def test_the_readmes_commands_name_files_that_exist():
    readme = (REPOSITORY / "README.md").read_text()
    for name in re.findall(r"--config=(configs/\w+\.py)", readme):
        assert (REPOSITORY / name).is_file(), name


def test_no_folder_of_runs_or_data_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "runs", "data"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert listed.stdout == ""
