"""README.md, CONTRIBUTING.md and docs/: the Python runs, links lead somewhere, commands and flags exist."""

import importlib.util
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

import zo_kernels.__main__
import zo_kernels.generate.__main__
import zo_kernels.plot.__main__
import zo_kernels.predict.__main__
import zo_kernels.replay.__main__
import zo_kernels.train.__main__

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PROGRAMS = {
    program.__name__.removesuffix(".__main__"): program.main  # type: ignore[attr-defined]
    for program in (
        zo_kernels.__main__,
        zo_kernels.train.__main__,
        zo_kernels.generate.__main__,
        zo_kernels.plot.__main__,
        zo_kernels.predict.__main__,
        zo_kernels.replay.__main__,
    )
}
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def blocks(page: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The words of each line of the blocks that are no language's, continued lines joined."""
    text = "\n".join(blocks(page, "")).replace("\\\n", " ")
    lines = [part for line in text.splitlines() for part in re.split(r"&&|;", line.split("    #")[0])]
    return [
        shlex.split(line, comments=True) for line in lines if re.match(r"\s*(python3?|torchrun|srun|pip|pytest) ", line)
    ]


# Python


def test_the_pages_have_code():
    assert sum(len(blocks(page)) for page in PAGES) >= 30


@each_page
def test_the_python_of_a_page_runs(page, capsys):
    names: dict[str, object] = {}
    for block in blocks(page):
        exec(compile(block, name_of(page), "exec"), names)


# The README


def test_the_readme_is_short():
    assert 500 < len(README.read_text().split()) < 1050


def test_the_first_screen_of_the_readme_has_a_command_and_ten_lines_of_python():
    text = README.read_text()
    first_screen = "\n".join(text.splitlines()[:30])
    assert "pip install . && python -m zo_kernels.train\n" in first_screen
    assert "```python" in first_screen
    assert 5 <= len([line for line in blocks(README)[0].splitlines() if line.strip()]) <= 10


def test_the_readme_has_the_command_of_the_tests():
    assert "\npip install '.[test]' && pytest\n" in README.read_text()


def test_the_readme_says_what_happens_to_parameters():
    text = README.read_text()
    assert "They stay where they are" in text
    assert "rounds float32 parameters to a grid" in text
    assert "not yet verified on a GPU" in text


# Links


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and MkDocs make of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {
        re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading.replace("`", "").strip().lower())) for heading in headings
    }


@each_page
def test_relative_links_and_images_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{target} is not there"
        assert linked.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such heading"


def test_every_page_can_be_reached_from_the_readme():
    reached, new = set(), {README}
    while new:
        page = new.pop()
        reached.add(page)
        links = {(page.parent / target).resolve() for target in re.findall(r"\]\(([^)\s#]+\.md)", prose(page))}
        new |= links - reached
    assert {page for page in PAGES if page.parent.name != "api"} <= reached


# Commands and flags


@cache
def flags_in_source(program: str) -> set[str]:
    """The flags of a script, or of a module of bench/: --help would not do, for some of them just begin to measure."""
    path = ROOT / (program if program.endswith(".py") else program.replace(".", "/"))
    files = [path] if path.suffix else [*path.glob("*.py")] or [path.with_suffix(".py")]
    return {flag for file in files for flag in re.findall(r'["\'](--[a-z][a-z0-9-]*)["\']', file.read_text())}


@pytest.fixture
def flags_of(capsys):
    """The flags that a program has; those of the package's programs from their --help."""

    def flags(module: str) -> set[str]:
        if module not in PROGRAMS:
            return flags_in_source(module)
        with pytest.raises(SystemExit):
            PROGRAMS[module](["--help"])
        starts = re.findall(r"^[│|]? {0,2}(-\S.*?)(?:  |$)", capsys.readouterr().out, re.MULTILINE)
        return {flag for start in starts for flag in FLAG.findall(start)}

    return flags


def torchrun_flags() -> set[str]:
    options = {flag for action in get_args_parser()._actions for flag in action.option_strings}
    return options | {flag.replace("_", "-") for flag in options}


def program_of(words: list[str]) -> str | None:
    """The module or script of this repository that a command runs."""
    if "-m" in words and words[words.index("-m") + 1].partition(".")[0] in ("zo_kernels", "bench"):
        return words[words.index("-m") + 1]
    return next((word for word in words if word.startswith(("examples/", "bench/")) and word.endswith(".py")), None)


def is_program(name: str) -> bool:
    return (ROOT / name).exists() if name.endswith(".py") else importlib.util.find_spec(name) is not None


def test_the_help_of_the_trainer_is_understood(flags_of):
    flags = flags_of("zo_kernels.train")
    assert {"--task", "--help", "--split", "--no-stop-on-divergence", "--max-cosine-distance"} <= flags
    assert "--shard" not in flags


@each_page
def test_commands_have_the_flags_that_they_are_given(page, flags_of):
    for words in commands(page):
        program = program_of(words)
        if program is None or program == "bench":
            continue
        assert is_program(program), f"{program} is not there"
        at = words.index(program)
        given = {word.partition("=")[0] for word in words[at + 1 :] if word.startswith("--")}
        assert given <= flags_of(program) if given else True, f"{program} has no {given - flags_of(program)}"
        if "torchrun" in words:
            launcher = {
                word.partition("=")[0] for word in words[words.index("torchrun") + 1 : at] if word.startswith("--")
            }
            assert launcher <= torchrun_flags(), f"torchrun has no {launcher - torchrun_flags()}"


@each_page
def test_flags_in_the_text_exist(page, flags_of):
    spans = re.findall(r"`([^`]+)`", prose(page))
    mentioned = {
        flag
        for span in spans
        if not re.match(r"(pip|pytest|mkdocs|mdformat|srun|scontrol|cmake) ", span)
        for flag in FLAG.findall(span)
    }
    programs = set(PROGRAMS) | {program for words in commands(page) if (program := program_of(words))}
    programs |= {program for span in spans if (program := program_of(span.split()))}
    known = torchrun_flags()
    for program in sorted(programs - {"bench"}):
        if mentioned <= known:
            break
        known |= flags_of(program)
    assert mentioned <= known, f"no program has {sorted(mentioned - known)}"


@each_page
def test_programs_and_files_in_the_text_exist(page):
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        program = program_of(span.split())
        assert program is None or is_program(program), f"{span}: {program} is not there"
        if re.fullmatch(r"(\.ci|bench|csrc|docs|examples|tests|zo_kernels)/[\w./-]+", span):
            made = span.startswith("bench/results/")
            assert made or (ROOT / span).exists(), f"{span} is not there"
        for path in re.findall(r"^pytest (tests/\S+)", span):
            assert (ROOT / path).exists(), f"{path} is not there"


# The site (the rest is what `mkdocs build --strict` finds)


def load(script: str):
    spec = importlib.util.spec_from_file_location(Path(script).stem, ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_become_markdown():
    pytest.importorskip("griffe")
    docstring = """Steps along x*y and p_i.

    theta' = theta - lr * g

lr, eps: step size; None means
    both. probes: n, per step. None: no such name. See `zo_kernels.optim.CDRGE` and `a_b`.

Raises ValueError: not a name either."""
    assert load("docs/site/docstrings.py").to_markdown(docstring, {"lr", "eps", "probes"}) == (
        "Steps along x\\*y and p\\_i.\n\n```text\ntheta' = theta - lr * g\n```\n\n"
        "- `lr`, `eps`: step size; None means both.\n"
        "- `probes`: n, per step. None: no such name. See <autoref optional "
        'identifier="zo_kernels.optim.CDRGE"><code>zo_kernels.optim.CDRGE</code></autoref> and `a_b`.\n\n'
        "Raises ValueError: not a name either."
    )


def test_links_are_moved_to_the_site():
    pytest.importorskip("mkdocs")

    class Files:
        def get_file_from_path(self, path: str) -> bool:
            return (ROOT / "docs" / path).exists()

    move = load("docs/site/pages.py").move_links
    assert move("[a](docs/tasks.md#rules) ![b](docs/images/copy.png)", "README.md", Files()) == (
        "[a](tasks.md#rules) ![b](images/copy.png)"
    )
    assert move("[a](../README.md), [b](contract.md), [c](#here)", "docs/tasks.md", Files()) == (
        "[a](index.md), [b](contract.md), [c](#here)"
    )
    assert move("[log](../bench/NOTES.md), [a](none.md)", "docs/tasks.md", Files()) == "log, [a](none.md)"
    assert move("[a](https://example.org/a.md)", "README.md", Files()) == "[a](https://example.org/a.md)"
