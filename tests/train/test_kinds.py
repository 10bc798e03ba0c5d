"""Every model, solver, estimator, transform and rule that the flags name, from the command line."""

import json
import math
from pathlib import Path

import pytest

from tests.train.runs import FILES, SMALL, files_of, metrics_of
from zo_kernels.models import MODEL_NAMES
from zo_kernels.models.presets import PRESETS
from zo_kernels.train.__main__ import main
from zo_kernels.train.cli import parse

MEMORY = ["--memory-slots", "6", "--memory-width", "4"]


def flags_of(model: str) -> list[str]:
    return [*SMALL, "--model", model, *(MEMORY if "dnc" in model else [])]


@pytest.mark.parametrize("solver", [[], ["--solver", "bptt", "--lr", "0.01"]], ids=["zo", "bptt"])
@pytest.mark.parametrize("model", MODEL_NAMES)
def test_every_model_trains_with_every_solver(model: str, solver: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main([*flags_of(model), *solver, "--out", str(out)]) == 0
    assert files_of(out) == FILES
    per_step = 3 if solver else 6
    assert [line["forwards"] for line in metrics_of(out)[1:]] == [per_step * step for step in range(1, 6)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of the run without further flags."""
    out = tmp_path_factory.mktemp("plain") / "run"
    assert main([*SMALL, "--out", str(out)]) == 0
    return (out / "weights.safetensors").read_bytes()


@pytest.mark.parametrize(
    "flags",
    [
        ["--estimator", "fd"],
        ["--estimator", "2-spsa"],
        ["--distribution", "uniform", "--lr", "0.01"],
        ["--distribution", "sparse-2"],
        ["--transforms", "z-score,momentum:0.5:2", "--lr", "0.001"],
        ["--dense", "momentum", "--lr", "0.01"],
        ["--num-layers", "2", "--layer-norm", "--residual", "--segment-length", "3"],
        ["--max-cosine-distance", "1.5", "--micro-batch-size", "2"],
        ["--solver", "bptt", "--optimizer", "sgd"],
        ["--solver", "bptt", "--checkpoint-length", "3", "--micro-batch-size", "2"],
        ["--solver", "bptt", "--max-cosine-distance", "1.5", "--micro-batch-size", "1"],
    ],
    ids=" ".join,
)
@pytest.mark.slow
def test_every_way_is_another(flags: list[str], plain: bytes, tmp_path: Path) -> None:
    """Each runs, with finite losses, and differs from the run without the flags; the same flags repeat it."""
    for name in ("first", "second"):
        assert main([*SMALL, *flags, "--out", str(tmp_path / name)]) == 0
    first, second = ((tmp_path / name / "weights.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
    assert first != plain
    assert all(
        math.isfinite(line["validation_loss"]) for line in metrics_of(tmp_path / "first") if "validation_loss" in line
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--estimator", "magic"], "unknown estimator 'magic': choose one of cd, fd, antithetic, 1.5-spsa, 2-spsa"),
        (["--solver", "magic"], "unknown solver 'magic': choose one of zo, activity, bptt"),
        (["--optimizer", "magic", "--solver", "bptt"], "unknown optimizer 'magic': choose one of sgd, adamw"),
        (["--dense", "magic"], "unknown dense 'magic': choose one of adam, momentum"),
        (["--log", "magic"], "unknown log 'magic': choose one of tensorboard, wandb"),
        (["--preset", "magic"], "unknown preset 'magic': choose one of paper-lstm-100k"),
        (["--transforms", "magic"], "unknown transform 'magic'"),
        (["--transforms", "clip-norm:x"], ""),
        (["--distribution", "sparse-3"], "distribution must be"),
        (["--solver", "bptt", "--estimator", "fd"], "--estimator does not apply to --solver bptt"),
        (["--solver", "bptt", "--transforms", "sign"], "--transforms does not apply to --solver bptt"),
        (["--optimizer", "sgd"], "--optimizer does not apply to --solver zo"),
        (["--checkpoint-length", "4"], "--checkpoint-length does not apply to --solver zo"),
        (["--max-cosine-distance", "0.5"], "--max-cosine-distance compares micro-batches: give --micro-batch-size too"),
        (["--max-cosine-distance", "3", "--micro-batch-size", "2"], "max_cosine_distance must be in [0, 2]"),
        (["--model", "dnc"], "the model dnc has a memory: give memory_slots too"),
        (["--memory-slots", "4"], "the model lstm has no memory: leave memory_slots out"),
        (["--model", "dnc", *MEMORY, "--precision", "bfloat16", "--eps", "0.03125"], "the model dnc has no bfloat16"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be at least 1, not 0"),
        (["--keep-checkpoints", "0"], "--keep-checkpoints must be at least 1, not 0"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["--out", str(out), *flags]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: " + sentence)
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert not out.exists()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_defaults(name: str) -> None:
    config, preset = parse(["--preset", name]), PRESETS[name]
    assert (config.model, config.hidden_size, config.num_heads) == (preset.model, preset.hidden_size, preset.num_heads)
    assert (config.memory_slots, config.memory_width) == (preset.memory_slots, preset.memory_width)
    assert 0 < config.lr < parse([]).lr
    assert 0 < config.eps < parse([]).eps
    assert math.frexp(config.eps)[0] == 0.5  # a power of two
    changed = parse(["--preset", name, "--embed-dim", "7", "--lr", "2"])
    assert (changed.embed_dim, changed.lr) == (7, 2.0)
    assert parse(["--preset", name, "--task", "overfit"]).task == "overfit"


@pytest.mark.slow
def test_a_learning_rate_is_searched_and_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*SMALL, "--lr", "search", "--steps", "6", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    tried = json.loads((out / "lr_search.json").read_text())
    assert len(tried) >= 7
    best = min(tried, key=lambda pair: pair[1])[0]
    config = json.loads((out / "config.json").read_text())
    assert config["lr"] == float(f"{best / 2:.3g}")
    assert f"best {best:.3g}: the run takes half of it, --lr {config['lr']:g}" in said
    same = tmp_path / "same"
    assert main([*SMALL, "--lr", str(config["lr"]), "--steps", "6", "--out", str(same)]) == 0
    assert (same / "weights.safetensors").read_bytes() == (out / "weights.safetensors").read_bytes()
    assert main([*SMALL, "--lr=search", "--steps", "6", "--out", str(tmp_path / "equals")]) == 0


def test_a_run_that_diverges_is_stopped_with_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Normal probes keep theta aside, so that no grid ends the run first.
    out = tmp_path / "run"
    flags = ["--distribution", "normal", "--lr", "30", "--steps", "200", "--lr-decay", "1"]
    assert main([*SMALL, *flags, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert "has long been far above its best" in printed.err
    assert "is too large, lower it" in printed.out
    assert files_of(out) == FILES
    assert 20 < len(metrics_of(out)) < 200
    assert main([*SMALL, *flags, "--no-stop-on-divergence", "--out", str(tmp_path / "on")]) == 0
    assert len(metrics_of(tmp_path / "on")) == 201


def test_a_log_has_every_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    out = tmp_path / "run"
    assert main([*SMALL, "--log", "tensorboard", "--out", str(out)]) == 0
    events = accumulator.EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [1, 2, 3, 4, 5]
    assert [event.step for event in events.Scalars("validation_loss")] == [0, 5]
