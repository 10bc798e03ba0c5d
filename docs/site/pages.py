"""Builds the site from the repository's own pages: README.md is its home, beside CONTRIBUTING.md and CHANGELOG.md.

A hook of MkDocs. Links between the root and docs/ are rewritten to the place that a page has on the site. Links to
other files of the repository would lead nowhere there, so only their text is kept.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    for source, page in ROOT_PAGES.items():
        text = move_links((ROOT / source).read_text(), source, files)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    if page.file.generated_by is not None:
        return markdown
    return move_links(markdown, f"docs/{page.file.src_uri}", files)


def move_links(markdown: str, source: str, files: Files) -> str:
    """The Markdown of a page with links as they are on the site. source: path of the page in the repository."""
    home = (
        posixpath.dirname(f"docs/{ROOT_PAGES.get(source, '')}") if source in ROOT_PAGES else posixpath.dirname(source)
    )

    def move(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match.group()
        in_repository = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        in_repository = f"docs/{ROOT_PAGES[in_repository]}" if in_repository in ROOT_PAGES else in_repository
        known = in_repository.removeprefix("docs/") in ROOT_PAGES.values() or (
            in_repository.startswith("docs/") and files.get_file_from_path(in_repository.removeprefix("docs/"))
        )
        if not known:
            if (ROOT / in_repository).exists():
                return match.group() if bang else text
            return match.group()  # MkDocs reports a link that is broken
        return f"{bang}[{text}]({posixpath.relpath(in_repository, home)}{hash_sign}{anchor})"

    return _LINK.sub(move, markdown)
