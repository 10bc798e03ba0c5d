"""`python -m bench`: lists the scripts."""

from __future__ import annotations

import ast
from pathlib import Path


def scripts() -> dict[str, str]:
    """By name, what a script's docstring begins with: what it measures, and about how long that takes."""
    folder, found = Path(__file__).parent, {}
    for path in sorted([*folder.glob("*.py"), *folder.glob("*/__main__.py")]):
        source = path.read_text()
        if path.parent == folder and ('__name__ == "__main__"' not in source or path.name == "__main__.py"):
            continue
        name = path.stem if path.parent == folder else path.parent.name
        _, _, found[name] = (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0].partition("`: ")
    return found


if __name__ == "__main__":
    print("Each script measures, prints a table, and writes to bench/results/ or docs/images/:")
    for name, line in scripts().items():
        print(f"  python -m bench.{name:<12} {line}")
