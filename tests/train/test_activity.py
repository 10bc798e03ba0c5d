"""`--solver activity`: what a step costs, what is refused; test_resume.py has its resumption."""

from pathlib import Path
from typing import Any

import pytest

import zo_kernels as zo
from zo_kernels.errors import UsageError
from zo_kernels.replay.__main__ import main as replay


def config_of(out: Path, **options: Any) -> zo.train.TrainConfig:
    small = {"hidden_size": 8, "embed_dim": 4, "batch_size": 4, "steps": 6, "checkpoint_every": 2}
    return zo.train.default_config("copy", solver="activity", lr=0.01, probes=2, out=out, **{**small, **options})


@pytest.mark.parametrize(
    ("options", "forwards"),
    [({}, 5), ({"local_gradient": True}, 5), ({"local_gradient": True, "credit_length": 1}, 1)],
)
def test_forward_passes_of_a_step(tmp_path: Path, options: dict[str, Any], forwards: int) -> None:
    result = zo.train.run(config_of(tmp_path / "run", steps=1, **options), quiet=True)
    passes = [line["forwards"] for line in result.metrics if line.get("forwards")]
    assert passes[-1] == forwards


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transforms": "clip-norm:1"}, "--transforms does not apply to --solver activity"),
        ({"segment_length": 2}, "--segment-length does not apply to --solver activity"),
        ({"checkpoint_length": 2}, "--checkpoint-length does not apply to --solver activity"),
        ({"precision": "bfloat16", "eps": 0.25}, "--precision does not apply to --solver activity"),
        ({"credit_length": 0}, "--credit-length must be at least 1, not 0"),
        ({"solver": "zo", "credit_length": 2}, "--credit-length does not apply to --solver zo"),
        ({"solver": "bptt", "local_gradient": True}, "--local-gradient does not apply to --solver bptt"),
        ({"num_layers": 2}, "--solver activity trains lstm, gru and elman with one layer and no layer norm"),
        ({"model": "dnc", "memory_slots": 2, "memory_width": 2}, "--solver activity trains lstm, gru and elman"),
    ],
)
def test_refusals(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    config = config_of(tmp_path / "run")
    with pytest.raises(UsageError, match=message):
        zo.train.run(zo.train.TrainConfig(**{**vars(config), **options}), quiet=True)


def test_steps_between_checkpoints_are_not_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    zo.train.run(config_of(tmp_path / "run"), quiet=True)
    out = str(tmp_path / "weights.safetensors")
    assert replay([str(tmp_path / "run"), "--step", "3", "--out", out]) != 0
    assert "the journal of --solver activity holds no gradients" in capsys.readouterr().err
