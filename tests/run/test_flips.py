"""One flipped bit in any file of a run is noticed, or changes nothing: no weights, no text, no metrics."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.run.files.small_run import train
from tests.train.runs import TIMES
from zo_kernels.errors import CheckpointError, JournalError, UsageError
from zo_kernels.generate import load_run, load_state, read_prompt, save_state
from zo_kernels.plot.runs import read_run
from zo_kernels.replay import replay

STEPS = 14
REFUSALS = (UsageError, JournalError, CheckpointError)


class Whole(NamedTuple):
    """A run that is not damaged, and what it gives."""

    run: Path
    symbols: tuple[str, ...]
    loaded: list[torch.Tensor]
    replayed: list[torch.Tensor]
    state: list[torch.Tensor]
    metrics: list[dict[str, Any]]


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The metrics as a plot takes them, without times and memory, which differ between runs."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_run(run).metrics]


@pytest.fixture(scope="module")
def whole(root: Path) -> Whole:
    run = root / "undamaged"
    assert train(run, STEPS).code == 0
    loaded = load_run(run)
    state = read_prompt(loaded.model, loaded.encode("ab"))
    save_state(run / "state", state, loaded)
    return Whole(
        run,
        loaded.symbols,
        list(loaded.model.parameters()),
        list(replay(run).weights.values()),
        [*state.states, state.logits],
        metrics_of(run),
    )


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def check(whole: Whole, run: Path) -> bool:
    """Uses a run with a flipped bit in every way. Returns whether the flip was noticed."""
    noticed = 0
    try:
        loaded = load_run(run)
        assert loaded.symbols == whole.symbols
        assert same(list(loaded.model.parameters()), whole.loaded)
        state = load_state(run / "state", loaded)
        assert same([*state.states, state.logits], whole.state)
    except UsageError:
        noticed += 1
    try:
        assert same(list(replay(run).weights.values()), whole.replayed)
    except REFUSALS:
        noticed += 1
    try:
        assert metrics_of(run) == whole.metrics
    except UsageError:
        noticed += 1
    ended = train(run, STEPS, resume=True)
    assert ended.code == 0 or ended.is_one_sentence, ended
    noticed += ended.code == 2 or "warning" in ended.out
    if ended.code == 0:
        assert metrics_of(run) == whole.metrics
        assert same(list(load_run(run).model.parameters()), whole.loaded)
    return noticed > 0


def flip(whole: Whole, run: Path, name: str, at: int, bit: int) -> None:
    shutil.copytree(whole.run, run)
    data = bytearray((run / name).read_bytes())
    data[at] ^= 1 << bit
    (run / name).write_bytes(data)


def files(whole: Whole) -> list[str]:
    return sorted(str(path.relative_to(whole.run)) for path in whole.run.rglob("*") if path.is_file())


def check_flips(whole: Whole, run: Path, count: int, seed: int) -> dict[str, int]:
    """Checks flips at random places, as many in each file. Returns the number of those that were noticed."""
    draw, names = random.Random(seed), files(whole)
    noticed = dict.fromkeys(names, 0)
    for number in range(count):
        name = names[number % len(names)]
        at, bit = draw.randrange((whole.run / name).stat().st_size), draw.randrange(8)
        flip(whole, run, name, at, bit)
        try:
            noticed[name] += check(whole, run)
        except Exception as error:
            raise AssertionError(f"bit {bit} of byte {at} of {name}") from error
        shutil.rmtree(run)
    return noticed


def test_a_hundred_flips(whole: Whole, root: Path) -> None:
    check_flips(whole, root / "flipped", 100, seed=0)


@pytest.mark.parametrize("bit", range(8))
def test_a_flip_in_the_last_newline_does_not_hide_the_last_line(whole: Whole, root: Path, bit: int) -> None:
    last = (whole.run / "metrics.jsonl").stat().st_size - 1
    run = root / f"newline-{bit}"
    flip(whole, run, "metrics.jsonl", last, bit)
    assert check(whole, run)


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_line_that_is_being_written_counts_once_it_is_whole(whole: Whole, root: Path, cut: int) -> None:
    run = root / f"cut-{cut}"
    shutil.copytree(whole.run, run)
    (run / "metrics.jsonl").write_bytes((whole.run / "metrics.jsonl").read_bytes()[:-cut])
    assert metrics_of(run) == (whole.metrics if cut == 1 else whole.metrics[:-1])


@pytest.mark.slow
def test_eight_hundred_flips(whole: Whole, root: Path) -> None:
    noticed = check_flips(whole, root / "flipped", 800, seed=1)
    each = 800 // len(noticed)
    assert noticed["config.json"] >= each
    assert noticed["vocabulary.json"] >= each
    assert noticed["metrics.jsonl"] >= each
    assert noticed["weights.safetensors"] >= 0.9 * each
    assert noticed["state"] >= 0.9 * each
    assert noticed["checkpoints/step-000000014.safetensors"] >= each


def test_metrics_that_are_not_those_of_the_journal_are_not_drawn(whole: Whole, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole.run, tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    for changed, sentence in (
        ([*lines[:3], lines[3].replace('"train_loss": ', '"train_loss": 1'), *lines[4:]], "the values of step 3 are"),
        ([*lines[:3], lines[4], lines[3], *lines[5:]], "its steps are"),
        ([*lines, lines[-1].replace('"step": 14', '"step": 15')], "its steps are"),
    ):
        (run / "metrics.jsonl").write_text("".join(changed))
        with pytest.raises(UsageError, match=f"metrics.jsonl is damaged: {sentence} not those of journal.sqlite"):
            read_run(run)
    (run / "metrics.jsonl").write_text("".join(lines[:5]) + lines[5][:20])  # the run is going on
    assert len(read_run(run).metrics) == 5
    (run / "metrics.jsonl").write_text("".join([*lines[:3], *lines[4:]]))
    (run / "journal.sqlite").unlink()  # then the lines count
    assert len(read_run(run).metrics) == len(lines) - 1
