"""The layout of the package: few modules at its root, no import cycles, imports that point down the layers."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "zo_kernels"

LAYERS = (
    ("philox", "errors", "interrupts", "command_line"),
    ("distributions", "extensions"),
    ("backends",),
    ("ops",),
    ("gradient",),
    ("distributed", "params", "run"),
    ("perturb", "estimators", "transforms", "tasks"),
    ("optim", "models", "plot", "populations"),
    ("durable",),
    ("train", "generate", "integrations"),
    ("replay", "predict"),
    ("environment",),
)
"""From the bottom up: a module imports from its own folder and from lower layers."""


def modules() -> dict[str, Path]:
    """Every module by its name within the package."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The modules that a module imports when it is imported itself; not those for type checkers, or in functions."""
    path = MODULES[name]
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    package = [part for part in package if part]
    pending: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while pending:
        statement = pending.pop()
        if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.dump(statement.test):
            pending += statement.orelse
        elif isinstance(statement, ast.ImportFrom) and statement.level:
            base = package[: len(package) - statement.level + 1]
            target = ".".join([*base, *([statement.module] if statement.module else [])])
            for alias in statement.names:
                inner = f"{target}.{alias.name}".lstrip(".")
                yield inner if inner in MODULES else target
        else:
            pending += [child for child in ast.iter_child_nodes(statement) if isinstance(child, ast.stmt)]
            if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)):
                del pending[-len(statement.body) :]


def test_the_root_holds_the_idea() -> None:
    assert len([path for path in PACKAGE.glob("*.py")]) <= 9


@pytest.mark.parametrize("name", sorted(MODULES))
def test_what_is_received_is_never_code(name: str) -> None:
    """Pickles run what they like when they are loaded, and torch's collectives of objects are pickles."""
    ways = r"\bimport (pickle|marshal|dill|cloudpickle)|(broadcast|gather|scatter|send|recv)_object"
    ways += r"|(?<!\.)\btorch\.load\(|(?<![.\w])(eval|exec)\("
    assert re.search(ways, MODULES[name].read_text()) is None


def test_there_are_no_import_cycles() -> None:
    state: dict[str, str] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        if state.get(name) == "done":
            return
        assert name not in trail, f"import cycle: {' -> '.join((*trail[trail.index(name) :], name))}"
        for other in set(imports(name)) - {""}:
            visit(other, (*trail, name))
        state[name] = "done"

    for name in MODULES:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"", "__main__"}))
def test_imports_point_down(name: str) -> None:
    heights = {member: height for height, layer in enumerate(LAYERS) for member in layer}
    own = name.split(".")[0]
    for other in imports(name):
        theirs = other.split(".")[0]
        assert theirs == own or heights[theirs] < heights[own], f"{name} imports {other or 'the package itself'}"
