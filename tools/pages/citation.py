"""BibTeX entries of the software and of the paper it is built around, from CITATION.cff."""

from collections.abc import Mapping
from typing import Any

import yaml

from tools.pages.repository import ROOT


def bibtex() -> str:
    """Fenced BibTeX: the software, then every reference."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    entries = [_entry("software", "fda_jax", cff, {"version": cff["version"]})]
    for paper in cff["references"]:
        key = f"{paper['authors'][0]['family-names'].lower()}{paper['year']}"
        names = {"booktitle": "collection-title", "volume": "volume", "year": "year", "url": "url"}
        entries.append(_entry("inproceedings", key, paper, {k: paper[v] for k, v in names.items()}))
    return "\n\n".join(f"```bibtex\n{entry}\n```" for entry in entries)


def _entry(kind: str, key: str, item: Mapping[str, Any], fields: Mapping[str, object]) -> str:
    authors = " and ".join(_name(author) for author in item["authors"])
    everything = {"title": f"{{{item['title']}}}", "author": authors, **fields}
    lines = [f"  {name} = {{{value}}}," for name, value in everything.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _name(author: Mapping[str, str]) -> str:
    if "name" in author:
        return f"{{{author['name']}}}"
    return f"{author['family-names']}, {author['given-names']}"
