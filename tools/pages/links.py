"""Every link of the built site leads somewhere: to a file, and to a place in it."""

import posixpath
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """What a page links to, and the places it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif name in ("href", "src") and value and tag != "form":
                self.links.add(value)


def broken(site: Path) -> Iterator[str]:
    """Links of a built site that lead nowhere.

    Args:
      site: its folder.

    Yields:
      A sentence for each link inside the site whose file or place is missing.
    """
    pages = {
        path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.name != "404.html"  # its links start from wherever it is shown
    }
    for name, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = _file(site, name, unquote(parts.path))
            place = unquote(parts.fragment)
            if not (site / target).is_file():
                yield f"{name} links to {link}, which is not there"
            elif place and target in pages and place not in pages[target].places:
                yield f"{name} links to {link}, but that page has no such place"


def _file(site: Path, page: str, path: str) -> str:
    """The file that a path leads to from a page; a folder means its index."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
    return posixpath.normpath(f"{target}/index.html") if (site / target).is_dir() else target
