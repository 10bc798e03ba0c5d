"""Run folders that version 0.1 left (tests/data/runs-0.1) are resumed, replayed, drawn and generated from: same bits.

Both were stopped after step 13 of 24. weights.json has digests of the weights that version 0.1 had after some steps of
the same runs, never stopped. "filtered" has micro-batches, the agreement filter, transforms and Adam.
"""

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest
import safetensors.torch

from zo_kernels.generate import load_run
from zo_kernels.generate.__main__ import main as generate
from zo_kernels.plot import plot_runs
from zo_kernels.plot.__main__ import main as plot
from zo_kernels.replay import replay
from zo_kernels.replay.__main__ import main as replay_main
from zo_kernels.train.__main__ import main as train

OLDER = Path(__file__).parents[1] / "data" / "runs-0.1"
WEIGHTS = json.loads((OLDER / "weights.json").read_text())


def digest_of(weights) -> str:
    digest = hashlib.sha256()
    for name, x in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(x.numpy().tobytes())
    return digest.hexdigest()


@pytest.fixture(params=list(WEIGHTS))
def run(request, tmp_path) -> Path:
    folder = tmp_path / request.param
    shutil.copytree(OLDER / request.param, folder)
    return folder


def test_is_resumed(run: Path, tmp_path: Path) -> None:
    assert train(["--resume", str(run)]) == 0
    assert digest_of(safetensors.torch.load_file(run / "weights.safetensors")) == WEIGHTS[run.name]["24"]
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == list(range(25))
    for step, digest in WEIGHTS[run.name].items():
        assert digest_of(replay(run, int(step)).weights) == digest


def test_is_replayed(run: Path) -> None:
    for step in (0, 5, 13):
        assert digest_of(replay(run, step).weights) == WEIGHTS[run.name][str(step)]


def test_is_forked(run: Path, tmp_path: Path) -> None:
    fork = tmp_path / "fork"
    assert train(["--fork", str(run), "--fork-step", "5", "--out", str(fork)]) == 0
    assert digest_of(replay(fork, 5).weights) == WEIGHTS[run.name]["5"]
    assert digest_of(replay(fork, 24).weights) == WEIGHTS[run.name]["24"]


def test_is_drawn(run: Path, tmp_path: Path) -> None:
    plot_runs([run], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_is_generated_from(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert digest_of(dict(load_run(run).model.named_parameters())) == WEIGHTS[run.name]["13"]
    assert generate(["--run", str(run), "--prompt", "ab|", "--tokens", "4", "--seed", "0"]) == 0
    assert capsys.readouterr().out.startswith("ab|")


def test_a_newer_format_is_refused_by_all_programs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "config.json"
    content = {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file != path}
    out = str(tmp_path / "out.png")
    for version, sentence in ((2, "has format 2, of a newer version of zo_kernels"), (True, "its format is True")):
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": version, "new_flag": 3}))
        for program, arguments in (
            (train, ["--resume", str(run)]),
            (train, ["--fork", str(run), "--out", str(tmp_path / "fork")]),
            (generate, ["--run", str(run), "--prompt", "ab|"]),
            (replay_main, [str(run), "--out", out]),
            (plot, [str(run), "--out", out]),
        ):
            assert program(arguments) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: {path} ")
            assert sentence in error
            assert error.count("\n") == 1
    assert content == {file: file.read_bytes() for file in run.rglob("*") if file.is_file() and file != path}
    assert sorted(path.name for path in tmp_path.iterdir()) == [run.name]


def test_a_changed_config_is_noticed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "config.json"
    path.write_text(path.read_text().replace('"steps": 24', '"steps": 25'))
    with sqlite3.connect(run / "journal.sqlite") as journal:
        rows = journal.execute("SELECT count(*) FROM steps").fetchone()
    assert train(["--resume", str(run)]) == 2
    assert "is not the config that journal.sqlite belongs to" in capsys.readouterr().err
    with sqlite3.connect(run / "journal.sqlite") as journal:
        assert journal.execute("SELECT count(*) FROM steps").fetchone() == rows
