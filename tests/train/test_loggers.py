"""Loggers, against the packages themselves: what they wrote is read back."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from zo_kernels.train.loggers import LOGGERS, TensorBoardLogger, WandbLogger

CONFIG = {"lr": 0.3, "out": Path("runs/x")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my-run"
    path.mkdir()
    return path


def log(name: str, folder: Path, steps: range, offset: float) -> None:
    """A stretch of a run: value = step + offset."""
    logger = LOGGERS[name]()
    logger.start(CONFIG, folder, steps.start - 1)
    for step in steps:
        logger.metrics(step, {"train_loss": step + offset, "lr": None})
    logger.close()


def test_tensorboard_goes_on_where_the_run_does(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log("tensorboard", folder, range(1, 7), 0.25)  # up to step 6; the last checkpoint was at 4
    log("tensorboard", folder, range(5, 9), 0.5)
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss"]
    assert [(e.step, e.value) for e in events.Scalars("train_loss")] == [
        (step, step + (0.25 if step <= 4 else 0.5)) for step in range(1, 9)
    ]
    (text,) = events.Tensors("config/text_summary")
    assert json.loads(text.tensor_proto.string_val[0].decode().strip("`\n")) == {"lr": 0.3, "out": "runs/x"}
    assert {path.name for path in folder.iterdir()} == {"tensorboard"}


def test_tensorboard_folder_that_cannot_be_made(folder: Path) -> None:
    pytest.importorskip("tensorboard")
    (folder / "tensorboard").write_text("in the way")
    with pytest.raises(ValueError, match=r"can't log to .*tensorboard"):
        TensorBoardLogger().start(CONFIG, folder)


def test_wandb_goes_on_with_the_same_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    seen: list[dict[str, Any]] = []
    ids = []
    for steps in (range(1, 5), range(5, 9)):
        logger = WandbLogger()
        logger.start(CONFIG, folder, steps.start - 1)
        run = wandb.run
        ids.append(run.id)
        assert (run.name, run.project, run.offline) == ("my-run", "zo_kernels", True)
        assert run.config.as_dict() == {"lr": 0.3, "out": "runs/x"}
        monkeypatch.setattr(run, "log", lambda values, step: seen.append({"step": step, **values}), raising=True)
        for step in steps:
            logger.metrics(step, {"train_loss": 2.0 * step, "lr": None})
        logger.close()
        assert wandb.run is None
    assert seen == [{"step": step, "train_loss": 2.0 * step} for step in range(1, 9)]
    assert ids[0] == ids[1]
    assert len(list((folder / "wandb").glob("offline-run-*/*.wandb"))) == 2


def test_wandb_writes_the_metrics(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "elsewhere")
    log("wandb", folder, range(1, 4), 0.125)
    (file,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    written = file.read_bytes()
    assert all(part in written for part in (b"train_loss", b"1.125", b"2.125", b"3.125", b"elsewhere"))


def test_another_folder_is_another_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        log("wandb", tmp_path / name, range(1, 2), 0.0)
        ids.add((tmp_path / name / "wandb" / "id").read_text())
    assert len(ids) == 2


def test_wandb_that_refuses_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def init(**_: object) -> None:
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "init", init)
    with pytest.raises(ValueError, match=r"wandb can't start, run `wandb login` or set WANDB_MODE=offline: No API key"):
        WandbLogger().start(CONFIG, folder)


@pytest.mark.parametrize(("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_one_sentence(name: str, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=rf"logging to {name} needs its package: pip install 'zo_kernels\[log\]'"):
        LOGGERS[name]()


@pytest.mark.parametrize("name", LOGGERS)
def test_closing_what_has_not_started(name: str) -> None:
    pytest.importorskip(name)
    LOGGERS[name]().close()
