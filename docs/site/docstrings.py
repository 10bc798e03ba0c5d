"""Renders the package's docstrings, which are plain text, as Markdown.

An extension of Griffe, which reads the sources for mkdocstrings. `probes: per step.` becomes an item of a list where
probes is a parameter or an attribute. `zo_kernels.optim.CDRGE` in backticks becomes a link where the reference has it.
Examples and formulas become blocks of code, and characters that Markdown would take for markup are escaped.
"""

from __future__ import annotations

import ast
import re
from typing import Any

from griffe import Alias, Class, Extension, Function, Module, Object

_ITEM = re.compile(r"(?:^|(?<=[.;:)]\s))((?:\w+)(?:, \w+)*): (?=\S)")
_CODE = re.compile(r"(`[^`]+`)")
_MARKUP = re.compile(r"([*_<\[\]])")
_REFERENCE = re.compile(r"`(zo_kernels\.[\w.]+)`")
_EXAMPLE = re.compile(r"(import |from |with |for |[\w.]+(, [\w.]+)* = |[\w.]+\()")


class PlainDocstrings(Extension):
    def on_package(self, *, pkg: Module, **_: Any) -> None:
        _render(pkg)


def _render(obj: Object | Alias) -> None:
    if isinstance(obj, Alias):
        return
    if obj.docstring is not None:
        obj.docstring.value = to_markdown(obj.docstring.value, _names(obj), examples=isinstance(obj, Module))
    for member in obj.members.values():
        _render(member)


def _names(obj: Object | Alias) -> set[str]:
    """What a docstring may describe in a list: parameters, and the attributes of a class."""
    if isinstance(obj, Function):
        return {parameter.name for parameter in obj.parameters}
    if isinstance(obj, Class):
        init = obj.members.get("__init__")
        return set(obj.members) | (_names(init) if init is not None else set())
    return set()


def to_markdown(text: str, names: set[str], examples: bool = False) -> str:
    """names: begin an item of a list where a colon follows. examples: code need not be indented."""
    rendered = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        if block.startswith("    ") or (examples and _EXAMPLE.match(block) and _is_python(block)):
            code = "\n".join(_dedent(block.split("\n")))
            rendered.append(f"```{'python' if _is_python(code) else 'text'}\n{code}\n```")
        else:
            rendered.append(_paragraph(" ".join(block.split()), names))
    return "\n\n".join(rendered)


def _is_python(code: str) -> bool:
    try:
        ast.parse(code)
    except SyntaxError:
        return False
    return True


def _dedent(lines: list[str]) -> list[str]:
    indent = min(len(line) - len(line.lstrip()) for line in lines)
    return [line[indent:] for line in lines]


def _paragraph(text: str, names: set[str]) -> str:
    """A paragraph, a list of names, or both: the list ends the paragraph."""
    items = [match for match in _ITEM.finditer(text) if set(match.group(1).split(", ")) <= names]
    if not items:
        return _escape(text)
    ends = [match.start() for match in items[1:]] + [len(text)]
    bullets = [
        "- {}: {}".format(
            ", ".join(f"`{name}`" for name in match.group(1).split(", ")), _escape(text[match.end() : end].strip())
        )
        for match, end in zip(items, ends, strict=True)
    ]
    before = text[: items[0].start()].strip()
    return "\n".join(([_escape(before), ""] if before else []) + bullets)


def _escape(text: str) -> str:
    pieces = _CODE.split(text)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = _REFERENCE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', piece)
        else:
            pieces[i] = _MARKUP.sub(r"\\\1", piece)
    return "".join(pieces)
