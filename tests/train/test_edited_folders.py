"""Run folders whose files somebody edited: each command does its work or refuses in one sentence, and changes nothing.

Links, pipes and the like are in tests/run/test_strange_files.py, flipped bits in tests/run/test_flips.py, and journals
in tests/run/test_journal_hostile.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from zo_kernels.generate.__main__ import main as generate
from zo_kernels.plot.__main__ import main as plot
from zo_kernels.replay.__main__ import main as replay
from zo_kernels.train.__main__ import main as train

TINY = ("--steps", "3", "--batch-size", "2", "--probes", "2", "--hidden-size", "4", "--embed-dim", "2")

COMMANDS: dict[str, Callable[[], int]] = {
    "resume": lambda: train(["--resume", "run"]),
    "fork": lambda: train(["--fork", "run", "--fork-step", "2", "--out", "forked"]),
    "replay": lambda: replay(["run", "--out", "weights.safetensors"]),
    "generate": lambda: generate(["--run", "run", "--prompt", "ab|", "--tokens", "3"]),
    "plot": lambda: plot(["run", "--out", "picture.png"]),
}

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 10**9, 10**30, 1e300, float("nan")),
    *("", "[/]\x1b[2J", "a" * 5000, "\ud800", ["x", 3], {"a": 1}),
)
TEXTS = (
    *(b"", b"null", b"[]", b"{}", b"3", b'"x"', b"\xff\xfe", b"{", b"[" * 100_000, b'{"a":' * 50_000, b"nonsense\n"),
    *(b'{"steps": 1}\n', b"\0" * 100, b"[1e999]", b'{"a": 1, "a": 2}', b"9" * 10_000),
)
LINES = (
    b"{}\n",
    b"3\n",
    b'{"step": "x"}\n',
    b'{"step": 1e30}\n',
    b'{"step": 1, "train_loss": "x"}\n',
    b'{"step":',
    b"[" * 9999,
)


class Edit(NamedTuple):
    """A file of the folder, and what is made of its bytes."""

    file: str
    what: str
    apply: Callable[[bytes], bytes]


def set_value(key: str, value: Any) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps({**json.loads(text), key: value}).encode()


def without(key: str) -> Callable[[bytes], bytes]:
    return lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != key}).encode()


def edits(folder: Path) -> list[Edit]:
    keys = list(json.loads((folder / "config.json").read_text()))
    found = [Edit("config.json", f"{key}={value!r:.20}", set_value(key, value)) for key in keys for value in VALUES]
    found += [Edit("config.json", f"no {key}", without(key)) for key in keys]
    found += [Edit("config.json", "another key", set_value("another", 1))]
    for name in ("config.json", "vocabulary.json", "metrics.jsonl", "weights.safetensors", "lr_search.json"):
        found += [Edit(name, f"{text!r:.20}", lambda _, text=text: text) for text in TEXTS]
    found += [Edit("vocabulary.json", f"{v!r:.20}", lambda _, v=v: json.dumps([v] * 5).encode()) for v in VALUES]
    found += [Edit("metrics.jsonl", f"{line!r:.20}", lambda old, line=line: old + line) for line in LINES]
    return found


def state_of(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("-shm")
    }


@pytest.fixture(autouse=True)
def no_hanging() -> Iterator[None]:
    signal.alarm(280)
    yield
    signal.alarm(0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert train([*TINY, "--out", str(out)]) == 0
    return out


def try_edit(edit: Edit, command: str, whole: Path, folder: Path) -> None:
    case = f"{command} with {edit.file}: {edit.what}"
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(whole, folder / "run")
    file = folder / "run" / edit.file
    file.write_bytes(edit.apply(file.read_bytes() if file.exists() else b""))
    before = state_of(folder)
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace") for _ in range(2))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = COMMANDS[command]()
    err.seek(0)
    error = err.read().strip()
    assert code in (0, 2), (case, code, error)
    if code == 2:
        lines = [line for line in error.splitlines() if not line.startswith("warning: ")]
        assert len(lines) == 1, (case, error)
        assert lines[0].startswith("error: "), (case, error)
        assert state_of(folder) == before, case


def test_a_sample(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = random.Random(1)
    for edit in chosen.sample(edits(whole), 60):
        try_edit(edit, chosen.choice(list(COMMANDS)), whole, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_all(command: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rotation = list(COMMANDS).index(command)
    for number, edit in enumerate(edits(whole)):
        if number % (2 * len(COMMANDS)) == rotation:  # every second one, each with one command
            try_edit(edit, command, whole, tmp_path)
