"""What is made of the documentation: references from code, results from records, links."""

import importlib
import inspect
import json
import re

import pytest

from fda_jax import data, deploy, experiment, layers, models, ops
from fda_jax.layers import METHODS
from tests.conftest import REPOSITORY
from tools.pages import (
    citation,
    configuration,
    links,
    made,
    measured,
    methods,
    notebooks,
    repository,
)
from tools.pages.comments import keys_of_base, knobs_of_methods

CONFIGS = REPOSITORY / "configs"
# Records of whole runs; a stage's lie inside one.
RECORDS = [
    json.loads(path.read_text())
    for path in sorted(REPOSITORY.glob("results/**/result.json"))
    if not path.parent.name.startswith("stage")
]
SOURCE = """
SHARED = {
    "size": 1,  # in pixels
}
KNOBS = {
    "first": {
        # Above,
        # in two lines;
        "rate": 0.1,  # and beside.
        **SHARED,
    },
    "second": {"rate": 0.2, "size": 2},
}
"""


def test_a_meaning_is_the_comment_above_and_beside_or_the_first_on_that_name():
    found = knobs_of_methods(SOURCE)
    rate = "Above, in two lines; and beside."
    assert found["first"] == {"size": "in pixels", "rate": rate}
    assert found["second"] == {"size": "in pixels", "rate": rate}


def test_every_key_of_the_base_configuration_is_explained():
    config = importlib.import_module("base").get_config().to_dict()
    groups = {key for key, value in config.items() if isinstance(value, dict)}
    leaves = {f"{group}.{key}" for group in groups for key in config[group]}
    leaves = {leaf for leaf in leaves if not leaf.startswith("method.")} | (set(config) - groups)
    meanings = keys_of_base((CONFIGS / "base.py").read_text())
    assert set(meanings) - {"method", "stages"} == leaves
    assert [key for key in leaves if not meanings[key]] == []
    for leaf in leaves:
        assert f"| `{leaf}` |" in configuration.reference()


@pytest.mark.parametrize("name", METHODS)
def test_every_knob_is_explained_and_stands_with_the_default_of_its_row(name):
    meanings = knobs_of_methods((CONFIGS / "methods.py").read_text())[name]
    page = configuration.knobs(name)
    for knob, parameter in inspect.signature(METHODS[name]).parameters.items():
        assert meanings[knob], knob
        default = repr(parameter.default).replace("'", '"')
        assert f"| `method.{knob}` | {type(parameter.default).__name__} | `{default}` |" in page


@pytest.mark.parametrize("name", METHODS)
def test_a_page_has_a_head_for_the_table_and_states_its_formula_and_source(name):
    head = methods.read_head(name)
    assert head["title"] in methods.overview()
    assert head["weights"]
    text = (methods.PAGES / f"{name}.md").read_text()
    assert text.split("---\n", 2)[2].lstrip().startswith(f"# {head['title']} (`{name}`)\n")
    assert "| | forward | slope |" in text
    assert ("\nSource: " in text) == (name != "full_precision")


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record["method"])
def test_a_page_shows_what_was_measured_where_a_method_has_one_seed(record):
    table = measured.results(record["method"])
    alone = [
        other["seed"]
        for other in RECORDS
        if {**other["config"], "seed": 0} == {**record["config"], "seed": 0}
    ]
    if len(alone) == 1:
        assert f"{100 * record['last_test_accuracy']:.2f}" in table
    assert record["revision"][:8] in table


@pytest.mark.parametrize("page", made.pages(), ids=lambda page: page.stem)
def test_what_is_made_in_a_page_is_what_would_be_made_now(page):
    assert page.read_text(encoding="utf-8") == made.filled(page), "run python -m tools.pages"


def test_every_part_has_a_page():
    parts = {
        page.relative_to(methods.DOCS).as_posix(): [
            match[2] for match in made.PART.finditer(page.read_text())
        ]
        for page in made.pages()
    }
    assert {
        f"methods/{name}.md": ["knobs", "measured"] for name in METHODS
    }.items() <= parts.items()
    assert {part for found in parts.values() for part in found} == set(made.MADE)


@pytest.mark.parametrize(
    "module", [ops, layers, models, data, experiment, deploy], ids=lambda m: m.__name__
)
def test_the_reference_shows_every_public_name(module):
    page = REPOSITORY / "docs" / "api" / f"{module.__name__.split('.')[1]}.md"
    shown = re.findall(rf"^::: {module.__name__}\.(\w+)$", page.read_text(), re.MULTILINE)
    assert sorted(shown) == sorted(module.__all__)


def test_a_method_without_a_record_says_so(monkeypatch):
    monkeypatch.setattr(measured, "_records", dict)
    assert measured.results("fda") == measured.NOTHING


def test_links_lead_to_the_place_a_file_has_in_the_site():
    page = REPOSITORY / "docs" / "methods" / "fda.md"
    text = (
        "[a](ste.md#x) [b](../../results/README.md) [c](../../train.py) [d](../../configs) "
        "[e](https://arxiv.org) [f](#here)\n```\n[g](../../train.py)\n```\n"
    )
    assert repository.with_site_links(text, page) == (
        "[a](ste.md#x) [b](../results/index.md) [c](../source/train.py.md) d "
        "[e](https://arxiv.org) [f](#here)\n```\n[g](../../train.py)\n```\n"
    )
    readme = repository.with_site_links("[a](docs/methods/fda.md)", REPOSITORY / "README.md")
    assert readme == "[a](methods/fda.md)"


def test_what_a_page_links_to_is_in_the_site():
    found = repository.collect()
    assert {"index.md", "contributing.md", "results/index.md", "benchmarks/index.md"} <= set(found)
    assert found["source/configs/base.py.md"] == CONFIGS / "base.py"
    assert "results/table2/fda/seed0/network.npz" in found  # as it is, to be downloaded


def test_what_the_site_shows_as_text_is_text():
    for path in repository.collect().values():
        if path.suffix not in (*repository.PAGES, *repository.COPIED):
            assert path.read_text(encoding="utf-8")


def test_a_dead_link_and_a_dead_place_are_found(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "index.html").write_text('<h1 id="top">There</h1>')
    (tmp_path / "index.html").write_text(
        '<a href="there/">a</a><a href="there/#top">b</a><a href="https://arxiv.org">c</a>'
        '<a href="gone/">d</a><a href="there/#gone">e</a><img src="gone.png">'
    )
    assert [sentence.split(" links to ")[1] for sentence in links.broken(tmp_path)] == [
        "gone.png, which is not there",
        "gone/, which is not there",
        "there/#gone, but that page has no such place",
    ]


def test_a_notebook_becomes_its_cells_and_figures(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# A question\n", "\n", "Why?"]},
        {
            "cell_type": "code",
            "source": ["1 + 1"],
            "outputs": [
                {"output_type": "stream", "text": ["two\n"]},
                {"output_type": "display_data", "data": {"image/png": "AAAA"}},
            ],
        },
    ]
    path = tmp_path / "01.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    text, figures = notebooks.read(path)
    assert notebooks.title(path) == "A question"
    assert text.split("\n\n")[2:] == [
        "```python\n1 + 1\n```",
        "```text\ntwo\n```",
        "![figure](01_1.png)\n",
    ]
    assert figures == {"01_1.png": b"\x00\x00\x00"}


def test_the_citation_names_the_paper():
    assert "author = {Xu, Yixing and Han, Kai" in citation.bibtex()
    assert "@software{fda_jax," in citation.bibtex()
