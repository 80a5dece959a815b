"""Pages link to what exists, their commands are ones, and the project speaks of itself alone."""

import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from tests.conftest import REPOSITORY

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "results/**/*.md")
    for path in REPOSITORY.glob(pattern)
)
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
METHOD_PAGES = REPOSITORY / "docs" / "methods"
PICTURES = REPOSITORY / "docs" / "images" / "methods"


def commands():
    """The words of every command of the pages that trains by a configuration."""
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))):
        for block in FENCE.findall(page.read_text()):
            for line in block.replace("\\\n", "").splitlines():
                _, program, rest = line.partition("python train.py ")
                if program and "--config=configs/" in rest:
                    words = ["train.py", *shlex.split(rest, comments=True)]
                    yield pytest.param(words, id=f"{page.stem}: {rest}")


@pytest.mark.parametrize("words", commands())
@pytest.mark.usefixtures("mine", "nets")
def test_the_configuration_of_a_command_can_be(words, monkeypatch):
    from fda_jax import data
    from fda_jax.experiment import setup, stages

    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", words)  # where config_flags looks for the overrides
    values(words, known_only=True)
    config = setup.words_apart(holder.value.to_dict())
    side = config["data"]["image_size"] if ":" in config["data"]["name"] else 32
    shape = (side, side, 3)
    images = np.broadcast_to(np.uint8(0), (2000, *shape))
    split = data.ArraySplit(images, np.arange(2000, dtype=np.int32) % 10)
    classes = tuple("0123456789")
    dataset = data.Dataset("x", 10, shape, (0.5,) * 3, (0.5,) * 3, classes, split, split)
    for part in stages.split(config) or [config]:
        setup.build(part, dataset=dataset)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_relative_link_leads_somewhere(page):
    text = FENCE.sub("", page.read_text())
    links = [link for link in LINK.findall(text) if not link.startswith("http")]
    for link in links:
        assert (page.parent / link).exists(), f"{page.name} links to {link}, which is not there"


def test_the_readme_shows_every_method_and_every_network():
    from fda_jax import layers, models

    readme = (REPOSITORY / "README.md").read_text()
    for name in (*layers.METHODS, *models.MODELS):
        assert f"`{name}`" in readme, name


def test_every_method_has_a_page_and_no_other():
    from fda_jax.layers import METHODS

    assert {path.stem for path in METHOD_PAGES.glob("*.md")} == {*METHODS, "index"}


def test_every_method_has_a_small_picture_in_its_page():
    from fda_jax.layers import METHODS

    for name in METHODS:
        text = (METHOD_PAGES / f"{name}.md").read_text()
        assert f"](../images/methods/{name}.png)" in text
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


@pytest.mark.parametrize(
    "notes", (REPOSITORY / "results").glob("*/notes.md"), ids=lambda n: n.parent.name
)
def test_the_page_of_all_results_has_the_notes_as_they_are(notes):
    assert notes.read_text().strip() in (REPOSITORY / "results" / "README.md").read_text()
