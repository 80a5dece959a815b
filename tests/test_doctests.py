"""The Python of the pages and of the public docstrings does what it shows."""

import doctest
import re

import pytest

from fda_jax import layers, models, ops
from fda_jax.training import optimizer
from tests.conftest import REPOSITORY

BLOCK = re.compile(r"^```pycon\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(REPOSITORY.glob("docs/**/*.md")) if ">>> " in page.read_text()]
OBJECTS = {
    f"{module.__name__}.{name}": getattr(module, name)
    for module in (ops, layers, models)
    for name in module.__all__
}
OBJECTS["fda_jax.training.optimizer.with_latent_rule"] = optimizer.with_latent_rule
DOCSTRINGS = [name for name, thing in OBJECTS.items() if ">>> " in (thing.__doc__ or "")]


def run(text: str, name: str) -> None:
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    output: list[str] = []
    doctest.DocTestRunner().run(test, out=output.append)
    assert not output, "".join(output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_what_python_says(page):
    text = page.read_text()
    blocks = BLOCK.findall(text)
    assert text.count(">>> ") == sum(block.count(">>> ") for block in blocks)
    run("\n".join(blocks), page.stem)


@pytest.mark.parametrize("name", DOCSTRINGS)
def test_a_docstring_shows_what_python_says(name):
    run(OBJECTS[name].__doc__, name)


def test_what_a_user_types_first_has_an_example():
    needed = {"ops.sign", "ops.binarize", "ops.square_wave", "ops.square_wave_slope"}
    needed |= {"layers.BinaryConv", "layers.BinaryDense", "layers.make_method", "models.build"}
    assert needed <= {name.removeprefix("fda_jax.") for name in DOCSTRINGS}
