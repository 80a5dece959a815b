"""Files outside docs/ that pages link to: how they enter the site, and where links then lead.

Links are written for a reader of the repository, relative to the file that holds them. In the site
a Markdown file or a notebook becomes a page, a picture stays one, any other file becomes a listing.
"""

import functools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from tools.pages import notebooks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Files that have a place in the site whether a page links to them or not.
ALWAYS = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "configs/*.py",
    "notebooks/*.ipynb",
    "results/README.md",
    "results/*/report.md",
)
PAGES = (".md", ".ipynb")
# As they are; of other files a page shows the text.
COPIED = (".png", ".svg", ".jpg", ".npz", ".onnx")
LANGUAGES = {
    ".py": "python",
    ".cc": "cpp",
    ".h": "cpp",
    ".toml": "toml",
    ".json": "json",
    ".jsonl": "json",
}

_FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_TEXT_LINK = re.compile(r"\[([^\[\]]*)\]\((?!https?:|mailto:|#)([^)\s#]+)\)")
_LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")


@functools.cache
def collect() -> dict[str, Path]:
    """The repository's files that belong into the site.

    Returns:
      Source address in the site -> path, for all files outside docs/ that a page links to, directly
      or through other pages.
    """
    found: dict[str, Path] = {}
    waiting = [path for pattern in ALWAYS for path in ROOT.glob(pattern)]
    waiting += [path for page in DOCS.rglob("*.md") for path in _targets(page)]
    while waiting:
        path = waiting.pop()
        if path.is_relative_to(DOCS) or not path.is_file() or address(path) in found:
            continue
        found[address(path)] = path
        if path.suffix in PAGES:
            waiting += _targets(path)
    return found


@functools.cache
def sources() -> Mapping[str, Path]:
    """Every page's file: source address in the site -> path."""
    return {**{address(page): page for page in DOCS.rglob("*.md")}, **collect()}


def text_of(path: Path) -> str:
    """The Markdown of a page of the repository, be it a notebook.

    Args:
      path: of a file with a suffix of `PAGES`.

    Returns:
      The text, its links as they stand there.
    """
    return notebooks.read(path)[0] if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")


def address(path: Path) -> str:
    """The address of a file of the repository among the site's sources.

    Args:
      path: absolute.

    Returns:
      e.g. "methods/fda.md", "results/index.md" or, for a listing, "source/train.py.md".
    """
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    inside = PurePosixPath(path.relative_to(ROOT).as_posix())
    if inside.suffix in COPIED:
        return str(inside)
    if inside.suffix == ".ipynb":
        return str(inside.with_suffix(".md"))
    if inside.suffix != ".md":
        return f"source/{inside}.md"
    if inside.name == "README.md":
        return str(inside.with_name("index.md"))
    return str(inside.with_name(inside.name.lower()))


def listing(path: Path) -> str:
    """A page that shows a file as it is.

    Args:
      path: of a text file of the repository.

    Returns:
      Markdown; search leaves it out.
    """
    name = path.relative_to(ROOT).as_posix()
    language = LANGUAGES.get(path.suffix, "text")
    return (
        f"---\ntitle: {name}\nsearch:\n  exclude: true\n---\n\n# `{name}`\n\n"
        f"``` {{ .{language} linenums=1 }}\n{path.read_text(encoding='utf-8')}```\n"
    )


def with_site_links(markdown: str, path: Path) -> str:
    """A page's text with links that lead to places of the site.

    Args:
      markdown: the text.
      path: of the file that holds it.

    Returns:
      The text; a link to a folder leads to its README.md, and to its name where there is none.
    """

    def lead(match: re.Match[str]) -> str:
        target = _resolve(path, match[1])
        if target.is_relative_to(DOCS) and path.is_relative_to(DOCS):
            return match[0]
        relative = os.path.relpath(address(target), PurePosixPath(address(path)).parent)
        return f"]({PurePosixPath(relative)}{match[2] or ''})"

    def name_folders(match: re.Match[str]) -> str:
        has_page = not (path.parent / match[2]).is_dir() or _resolve(path, match[2]).is_file()
        return match[0] if has_page else match[1]

    def linked(text: str) -> str:
        if _FENCE.fullmatch(text):
            return text
        return _LINK.sub(lead, _TEXT_LINK.sub(name_folders, text))

    return "".join(map(linked, _split(markdown)))


def _targets(page: Path) -> Iterator[Path]:
    """The files that a page links to."""
    for text in _split(text_of(page)):
        if not _FENCE.fullmatch(text):
            yield from (_resolve(page, match[1]) for match in _LINK.finditer(text))


def _resolve(page: Path, link: str) -> Path:
    target = Path(os.path.normpath(page.parent / link))
    return target / "README.md" if target.is_dir() else target


def _split(markdown: str) -> Iterable[str]:
    """The text in order, each fenced block a part of its own."""
    start = 0
    for match in _FENCE.finditer(markdown):
        yield markdown[start : match.start()]
        yield match[0]
        start = match.end()
    yield markdown[start:]
