"""MkDocs' events: what the site holds beside the files of docs/."""

import logging
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.pages import (
    links,
    mathematics,
    methods,
    notebooks,
    repository,
)

# A warning here makes a strict build fail.
LOG = logging.getLogger("mkdocs.hooks")
CELL = re.compile(r"<td.*?</td>", re.DOTALL)
LONG_CODE = re.compile(r"(?<=<code>)[^<]{32,}")
BREAK = re.compile(r"([./_]|::)(?=\w)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods and the notebooks into the navigation."""
    for function in (repository.collect, repository.sources, notebooks.read):
        function.cache_clear()  # under mkdocs serve files change
    config.nav = [_filled(section) for section in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what the pages link to outside docs/."""

    def add(address: str, content: str | bytes) -> None:
        files.append(File.generated(config, address, content=content))

    for address, path in repository.collect().items():
        if path.suffix in repository.PAGES:
            add(address, repository.text_of(path))
        elif path.suffix in repository.COPIED:
            add(address, path.read_bytes())
        else:
            add(address, repository.listing(path))
        if path.suffix == ".ipynb":
            for name, figure in notebooks.read(path)[1].items():
                add(f"notebooks/{name}", figure)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links to their place in the site."""
    path = repository.sources()[page.file.src_uri]
    if path.suffix not in repository.PAGES:
        return markdown
    return repository.with_site_links(markdown, path)


def on_page_content(html: str, **_: Any) -> str:
    """Draw the formulas; let long code in a table break, behind dots, slashes and the like."""
    return CELL.sub(
        lambda cell: LONG_CODE.sub(lambda code: BREAK.sub(r"\1<wbr>", code[0]), cell[0]),
        mathematics.with_formulas(html),
    )


def on_post_build(config: MkDocsConfig) -> None:
    """Check every link of the finished site."""
    for sentence in links.broken(Path(config.site_dir)):
        LOG.warning(sentence)


def _filled(section: Mapping[str, Any]) -> Mapping[str, Any]:
    """A section of the navigation, with its pages that are not listed there."""
    (title, pages), *_ = section.items()
    if title == "Methods":
        pages = [*pages, *({name: f"methods/{name}.md"} for name in methods.NAMES)]
    if title == "Notebooks":
        found = sorted(repository.sources().items())
        pages = [{notebooks.title(path): name} for name, path in found if path.suffix == ".ipynb"]
    return {title: pages}
