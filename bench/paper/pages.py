"""Writes the tables of docs/paper.md from the JSON files, between the comments that name them, with their pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path

from .trials import Trials

COLORS = {
    "CD-RGE@8": "#9467bd",
    "CD-RGE@96": "#d62728",
    "CD-RGE@512": "#ff7f0e",
    "BPTT, AdamW": "#1f77b4",
    "BPTT, SGD": "#17becf",
}
"""Of the ways to train, in the pictures of Table 2 and of figures 1 and 2."""

_BLOCK = re.compile(r"<!-- begin ([\w-]+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def write(page: Path, results: Path, images: Path) -> None:
    """Replaces each block of the page by the tables of its JSON file, and its picture if there is one.

    images: folder of the pictures, as docs/images/paper, which the page has beside it as images/paper.
    """
    page.write_text(_BLOCK.sub(lambda block: _fill(block[1], results, images), page.read_text()))


def _fill(name: str, results: Path, images: Path) -> str:
    trials = Trials(results / f"{name}.json", f"python -m bench.paper {name}")
    content = import_module(f"bench.paper.{name.replace('-', '_')}").tables(trials)
    picture = f"\n\n![{name}](images/paper/{name}.png)" if (images / f"{name}.png").exists() else ""
    return f"<!-- begin {name} -->\n\n{content}{picture}\n\n<!-- end {name} -->"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In the form that mdformat leaves as it is."""
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join('--' for _ in head)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
