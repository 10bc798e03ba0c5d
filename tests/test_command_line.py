"""What the programs share: Ctrl-C at any moment, and a stdout that can't encode every character."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.train.runs import SMALL
from zo_kernels import command_line
from zo_kernels.command_line import SCRIPTS, run_program
from zo_kernels.generate.__main__ import main as generate
from zo_kernels.plot.__main__ import main as plot
from zo_kernels.predict.__main__ import main as predict
from zo_kernels.replay.__main__ import main as replay
from zo_kernels.train.__main__ import main as train

ROOT = Path(__file__).parents[1]
MODULES = ("zo_kernels", *(f"zo_kernels.{name}" for name in ("train", "generate", "replay", "plot", "predict")))

PRESSES_CTRL_C = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(10)
"""
NAMES_THE_POLICY = """
import os, sys
print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
print(os.environ.get("MPLBACKEND", ""), file=sys.stderr, end="", flush=True)
os._exit(0)
"""
NAMES_THE_HANDLER = """
import os, signal
handler = signal.getsignal(signal.SIGINT)
print(getattr(handler, "__name__", handler), flush=True)
os._exit(0)
"""


def ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Child:
    """Runs Python with a stand-in for torch, and a module `user` that imports the package."""

    def __init__(self, folder: Path, torch: str) -> None:
        self.folder = folder
        (folder / "torch.py").write_text(torch)
        (folder / "user.py").write_text("import zo_kernels\n")

    def script(self, name: str) -> str:
        """A file as pip writes it for the script `name`."""
        entry = re.search(rf'^{name} = "(.+):(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert entry is not None
        module, function = entry.groups()
        path = self.folder / name
        path.write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")
        return str(path)

    def run(self, *arguments: str, ignores: bool = False, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
        return subprocess.run(
            [sys.executable, *arguments],
            env=environment | {"PYTHONPATH": f"{self.folder}:{ROOT}"} | variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            preexec_fn=ignore_ctrl_c if ignores else None,
            timeout=60,
        )


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_while_torch_is_imported(module: str, tmp_path: Path) -> None:
    ended = Child(tmp_path, PRESSES_CTRL_C).run("-m", module)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_ctrl_c_while_an_installed_script_imports_torch(name: str, tmp_path: Path) -> None:
    child = Child(tmp_path, PRESSES_CTRL_C)
    ended = child.run(child.script(name), "--help")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_installed_script_is_the_program(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program = import_module(f"zo_kernels.{name.removeprefix('zo-')}.__main__").program
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "stdout", terminal := screen("utf-8"))
    with pytest.raises(SystemExit) as ended:
        program()
    assert ended.value.code == 0
    assert f"zo_kernels.{name.removeprefix('zo-')}" in shown(terminal)


def test_the_threads_of_programs_sleep_when_idle(tmp_path: Path) -> None:
    """torch's OpenMP reads the variable when torch is imported."""
    child = Child(tmp_path, NAMES_THE_POLICY)
    assert child.run("-m", "zo_kernels.train").stdout == "passive\n"
    assert child.run(child.script("zo-replay")).stdout == "passive\n"
    assert child.run("-m", "bench.cpu").stdout == "passive\n"
    assert child.run("-m", "zo_kernels.train", OMP_WAIT_POLICY="active").stdout == "active\n"
    assert child.run("-c", "import zo_kernels").stdout == "None\n"
    assert child.run("-m", "user").stdout == "None\n"


def test_programs_do_not_care_about_matplotlibs_backend(tmp_path: Path) -> None:
    child = Child(tmp_path, NAMES_THE_POLICY)
    assert child.run("-m", "zo_kernels.plot", MPLBACKEND="nonsense").stderr == ""
    assert child.run("-m", "user", MPLBACKEND="nonsense").stderr == "nonsense"


def test_openmp_hears_of_it() -> None:
    """With its own words, from a process in which nothing else has set the variable."""
    variables = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    ended = subprocess.run(
        [sys.executable, "-m", "zo_kernels"],
        env=variables | {"OMP_DISPLAY_ENV": "true"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in ended.stderr


def test_only_the_programs_handle_ctrl_c(tmp_path: Path) -> None:
    child = Child(tmp_path, NAMES_THE_HANDLER)
    for arguments in (
        ["-m", "zo_kernels.train"],
        ["-mzo_kernels.train", "--task", "text"],
        ["-Bum", "zo_kernels", "-m", "user"],
        ["-X", "utf8", "-m", "zo_kernels.generate", "--prompt", "-m"],
    ):
        assert child.run(*arguments).stdout == "_handle_interrupt\n"
    for arguments in (
        ["-c", "import zo_kernels"],
        ["-c", "import zo_kernels.train.__main__", "-m", "zo_kernels.train"],
        ["user.py", "-m", "zo_kernels.train"],
        ["-m", "user"],
        ["-m", "user", "zo_kernels.train"],
        ["-m", "user", "-m", "zo_kernels.train"],
        ["-muser", "-mzo_kernels"],
    ):
        assert child.run(*arguments).stdout == "default_int_handler\n"


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    ended = Child(tmp_path, NAMES_THE_HANDLER).run("-m", "zo_kernels.train", ignores=True)
    assert ended.stdout == f"{signal.SIG_IGN}\n"


def test_an_import_of_the_package_does_not_load_the_parser_of_the_command_line() -> None:
    code = "import sys, zo_kernels; print([name for name in ('tyro', 'rich', 'matplotlib') if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ended.stdout == "[]\n"


def code_of(main: Callable[[], int]) -> object:
    with pytest.raises(SystemExit) as ended:
        run_program(main)
    return ended.value.code


def test_ctrl_c_in_main_and_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(code: int) -> None:
        raise EOFError(f"exit {code}")

    monkeypatch.setattr(os, "_exit", ends)

    def interrupted() -> int:
        command_line._handle_interrupt(signal.SIGINT, None)
        return 0

    assert code_of(lambda: 2) == 2
    assert code_of(interrupted) == 130
    assert code_of(lambda: sys.exit(7)) == 7
    with pytest.raises(EOFError, match="exit 130"):
        command_line._handle_interrupt(signal.SIGINT, None)


def screen(encoding: str, errors: str = "strict") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors=errors)


def shown(terminal: io.TextIOWrapper) -> str:
    terminal.flush()
    return terminal.buffer.getvalue().decode(terminal.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("encoding", "errors", "text"),
    [
        ("ascii", "strict", "na\\xefve \\U0001f98a \\udcff"),
        ("ascii", "surrogateescape", "na\\xefve \\U0001f98a \\udcff"),
        ("latin-1", "strict", "naïve \\U0001f98a \\udcff"),
        ("utf-8", "strict", "naïve 🦊 \\udcff"),
        ("ascii", "replace", "na?ve ? ?"),
    ],
)
def test_characters_that_stdout_lacks_are_escapes(
    encoding: str, errors: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := screen(encoding, errors))
    assert code_of(lambda: print("naïve 🦊 \udcff") or 0) == 0
    assert shown(terminal) == text + "\n"


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert code_of(lambda: 0) == 0


def test_every_program_prints_to_an_ascii_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, run = tmp_path / "naïve.txt", tmp_path / "café"
    book.write_text("naïve café 🦊\n" * 60, encoding="utf-8")
    sizes = ["--embed-dim", "4", "--hidden-size", "8", "--num-heads", "2", "--batch-size", "2", "--context-length", "5"]
    steps = ["--probes", "2", "--steps", "2", "--task", "text"]

    def printed(main: Callable[[list[str]], int], *arguments: str) -> str:
        monkeypatch.setattr(sys, "stdout", terminal := screen("ascii"))
        assert code_of(lambda: main(list(arguments))) == 0
        return shown(terminal)

    assert "caf\\xe9\n" in printed(train, *sizes, *steps, "--data", str(book), "--out", str(run))
    text = printed(generate, "--run", str(run), "--prompt", "naïve", "--tokens", "30")
    assert text.startswith("na\\xefve")
    assert "caf\\xe9.new\n" in printed(replay, str(run), "--out", str(tmp_path / "café.new"))
    assert "caf\\xe9.png\n" in printed(plot, str(run), "--out", str(tmp_path / "café.png"))


@pytest.mark.parametrize("program", ["train", "generate", "replay", "plot", "predict"])
def test_help_is_ascii(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", terminal := screen("ascii"))
    main = {"train": train, "generate": generate, "replay": replay, "plot": plot, "predict": predict}[program]
    assert code_of(lambda: main(["--help"])) == 0
    assert "--out" in shown(terminal) or "--prompt" in shown(terminal)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_while_a_file_is_read(tmp_path: Path) -> None:
    pipe, out = tmp_path / "pipe", tmp_path / "run"
    os.mkfifo(pipe)
    process = start("zo_kernels.train", "--task", "text", "--data", str(pipe), "--out", str(out))
    try:
        with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as writer:  # waits for the reader
            for written in range(10_000):
                if written == 10:
                    process.send_signal(signal.SIGINT)
                writer.write(b"ab" * 50_000)
            pytest.fail("all of the file was read")
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, error) == (130, "interrupted before the run began\n")
    assert not out.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train([*SMALL, "--out", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0, 0.3, 0.8])
@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_at_any_moment(module: str, seconds: float, finished: Path, tmp_path: Path) -> None:
    arguments = {
        "zo_kernels": [],
        "zo_kernels.train": [*SMALL, "--steps", "1000000", "--out", str(tmp_path / "run")],
        "zo_kernels.generate": ["--run", str(finished), "--prompt", "ab|", "--tokens", "1000"],
        "zo_kernels.replay": [str(finished), "--out", str(tmp_path / "weights")],
        "zo_kernels.predict": ["--run", str(finished), "--data", "x.csv", "--out", str(tmp_path / "predictions.csv")],
        "zo_kernels.plot": [str(finished), "--out", str(tmp_path / "picture.png")],
    }[module]
    process = start(module, *arguments)
    try:
        while process.poll() is None and "torch" not in Path(f"/proc/{process.pid}/maps").read_text():
            time.sleep(0.002)
        time.sleep(seconds)
        is_over = process.poll() is not None
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in error
    assert "KeyboardInterrupt" not in error
    # The interpreter restores the system's handler in its last milliseconds: a shell calls that 130 too.
    assert process.returncode in ((0,) if is_over else (130, -signal.SIGINT))
