"""What a durable loop refuses, in one sentence, and what it leaves as it was."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zo_kernels as zo
from zo_kernels.durable import DurableRun
from zo_kernels.errors import CheckpointError, DivergenceError, JournalError, UsageError
from zo_kernels.optim import CDRGE, Adam, ZeroOrder
from zo_kernels.run.folder import checkpoint_path
from zo_kernels.run.journal import Journal
from zo_kernels.train.__main__ import main as train_main
from zo_kernels.transforms import clip_norm


def build(**options: Any) -> tuple[nn.Linear, ZeroOrder]:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    return model, ZeroOrder(model.parameters(), **{"lr": 0.01, "eps": 2**-7, "probes": 2, **options})


def take(run: DurableRun, opt: ZeroOrder, model: nn.Module, steps: int) -> None:
    for _ in run.steps(steps):
        opt.step(lambda: model(torch.ones(1, 3)).square().sum())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of four steps, the last without a checkpoint."""
    model, opt = build()
    with zo.durable.run(tmp_path / "run", model, opt, checkpoint_every=2) as run:
        for step in run.steps(5):
            if step == 4:
                break
            opt.step(lambda: model(torch.ones(1, 3)).square().sum())
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.02}, "has lr 0.01, not 0.02: build it as before, or give another folder"),
        ({"eps": None}, "has eps 0.0078125, not 0.01"),
        ({"probes": 3}, "has probes 2, not 3"),
        ({"seed": 1}, "has seed 0, not 1"),
        ({"estimator": "fd"}, "has estimator .*CentralDifference.*, not .*ForwardDifference"),
        ({"transforms": clip_norm(1.0)}, r"has transforms None, not .*clip.*1.0"),
        ({"dense": Adam(beta1=0.8)}, r"has dense None, not .*Adam\(beta1=0.8"),
        ({"mode": "shadow"}, "has mode auto, not shadow"),
        ({"maximize": True}, "has maximize False, not True"),
    ],
)
def test_another_optimizer(folder: Path, options: dict[str, Any], words: str) -> None:
    model, opt = build(**options)
    with pytest.raises(UsageError, match=words):
        zo.durable.run(folder, model, opt)
    assert opt.log is None
    assert opt.steps_taken == 0


def test_a_group_that_differs(tmp_path: Path) -> None:
    def groups(lr: float) -> tuple[nn.Module, ZeroOrder]:
        model = nn.Linear(3, 1)
        return model, CDRGE([{"params": [model.weight]}, {"params": [model.bias], "lr": lr}], lr=0.01)

    zo.durable.run(tmp_path / "run", *groups(0.1)).close()
    with pytest.raises(UsageError, match=r"has lr of group 1 0.1, not 0.2"):
        zo.durable.run(tmp_path / "run", *groups(0.2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Linear(4, 1), r"another model: weight is float32 \[1, 3\] there, and float32 \[1, 4\] here"),
        (lambda: nn.Linear(3, 1, dtype=torch.float64), r"bias is float32 \[1\] there, and float64 \[1\] here"),
        (lambda: nn.Sequential(nn.Linear(3, 1)), r"bias is float32 \[1\] there, and missing here"),
    ],
)
def test_another_model(folder: Path, make: Callable[[], nn.Module], words: str) -> None:
    model = make()
    before = [p.clone() for p in model.parameters()]
    opt = ZeroOrder(model.parameters(), lr=0.01, eps=2**-7, probes=2)
    with pytest.raises(UsageError, match=words):
        zo.durable.run(folder, model, opt)
    assert all(map(torch.equal, before, model.parameters()))
    assert opt.steps_taken == 0


def test_other_parts(folder: Path, tmp_path: Path) -> None:
    model, opt = build()
    scheduler = torch.optim.lr_scheduler.ConstantLR(opt, factor=1.0)
    with pytest.raises(UsageError, match="has no state of scheduler: leave it out"):
        zo.durable.run(folder, model, opt, scheduler=scheduler)
    with zo.durable.run(tmp_path / "new", model, opt, scheduler=scheduler) as run:
        take(run, opt, model, 1)
    with pytest.raises(UsageError, match="has the state of scheduler: give it to the run as before"):
        zo.durable.run(tmp_path / "new", *build())
    with pytest.raises(UsageError, match="data is a list, without state_dict and load_state_dict"):
        zo.durable.run(tmp_path / "other", *build(), data=[1])
    model, opt = build()
    with zo.durable.run(tmp_path / "other", model, opt) as run:
        run.state["made"] = object()
        with pytest.raises(UsageError, match=r"run.state can't be saved: a checkpoint can't hold a object"):
            take(run, opt, model, 1)


def test_a_script_that_does_otherwise(folder: Path) -> None:
    model, opt = build()
    with zo.durable.run(folder, model, opt, checkpoint_every=3) as run:
        assert run.resumed_from == 4
    checkpoint_path(folder, 4).unlink()
    model, opt = build()
    with zo.durable.run(folder, model, opt) as run:
        for step in run.steps(5):
            assert run.replaying == (step < 4)
            opt.param_groups[0]["lr"] = 0.01 if step == 2 else 0.5
            if step == 2:
                opt.step(lambda: 1 / 0)  # which is not called
                continue
            with pytest.raises(UsageError, match=r"step 3 of .* was taken with lr 0.01, and would have 0.5 now"):
                opt.step(lambda: 1 / 0)
            opt.param_groups[0]["lr"] = 0.01
            break
    with Journal.open(folder / "journal.sqlite", writable=False) as journal:
        assert journal.next_step == 4


def test_each_pass_takes_one_step(tmp_path: Path) -> None:
    model, opt = build()

    def step() -> None:
        opt.step(lambda: model(torch.ones(1, 3)).square().sum())

    with zo.durable.run(tmp_path / "run", model, opt) as run:
        with pytest.raises(UsageError, match=r"outside of `for step in run.steps"):
            step()
        with pytest.raises(UsageError, match="the pass of step 0 took 0 steps"):
            for _ in run.steps(2):
                pass
        for _ in run.steps(1):
            step()
            with pytest.raises(UsageError, match="a second one in a pass"):
                step()
            with pytest.raises(UsageError, match=r"run.steps is in use"):
                next(run.steps(3))
        with pytest.raises(UsageError, match="is in a durable run already"):
            zo.durable.run(tmp_path / "other", model, opt)
    step()  # after the run, the optimizer is free
    assert opt.steps_taken == 2


def test_a_step_that_fails_may_be_tried_again(tmp_path: Path) -> None:
    model, opt = build()
    with zo.durable.run(tmp_path / "run", model, opt) as run:
        for step in run.steps(3):
            if step == 1:
                with pytest.raises(DivergenceError):
                    opt.step(lambda: float("nan"))
            opt.step(lambda: model(torch.ones(1, 3)).square().sum())
        with pytest.raises(JournalError, match="can't name scores"):
            run.scores({"a b": (0.0, 0.0)})
    with Journal.open(tmp_path / "run" / "journal.sqlite", writable=False) as journal:
        assert len(list(journal.rows())) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checkpoint_every": 0}, "checkpoint_every must be an integer of at least 1, not 0"),
        ({"keep_checkpoints": 1.5}, "keep_checkpoints must be an integer of at least 1, not 1.5"),
        ({"tokens_per_step": -1}, "tokens_per_step must be an integer of at least 0"),
        ({"build": lambda: None}, "build must be a function of a module or its name"),
        ({"build": "no colon"}, "build must be a function of a module or its name"),
    ],
)
def test_arguments(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        zo.durable.run(tmp_path / "run", *build(), **options)
    assert not (tmp_path / "run").exists()


def test_what_is_no_model_and_no_optimizer(tmp_path: Path) -> None:
    model, opt = build()
    with pytest.raises(UsageError, match="must be a ZeroOrder or CDRGE, not a SGD"):
        zo.durable.run(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.1))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="parameters that are not the model's"):
        zo.durable.run(tmp_path, nn.Linear(3, 1), opt)
    with pytest.raises(UsageError, match="must have a state_dict"):
        zo.durable.run(tmp_path, 5, opt)


def test_folders_of_others(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(UsageError, match="not empty, and not that of a run: give another one"):
        zo.durable.run(tmp_path / "full", *build())
    with zo.durable.run(folder, *build()), pytest.raises(UsageError, match="another process is training in"):
        zo.durable.run(folder, *build())
    flags = ["--steps", "1", "--embed-dim", "4", "--hidden-size", "8", "--probes", "2", "--device", "cpu"]
    assert train_main([*flags, "--out", str(tmp_path / "trained")]) == 0
    with pytest.raises(UsageError, match=r"is a run of python -m zo_kernels.train: continue it with --resume"):
        zo.durable.run(tmp_path / "trained", *build())
    for words in (["--resume", str(folder)], ["--fork", str(folder), "--out", str(tmp_path / "fork")]):
        assert train_main(words) == 2
        assert "to continue the run, start the script again" in capsys.readouterr().err


def test_damage_and_other_arithmetic(folder: Path) -> None:
    settings = (folder / "config.json").read_text()
    (folder / "config.json").write_text(settings + " ")
    with pytest.raises(JournalError, match=r"is not the config that journal.sqlite belongs to"):
        zo.durable.run(folder, *build())
    (folder / "config.json").write_text(settings)
    entries = json.loads((folder / "arithmetic.json").read_text())
    entries[0][1]["threads"] = "77"
    (folder / "arithmetic.json").write_text(json.dumps(entries))
    with pytest.raises(UsageError, match=r"torch's threads was 77 and is .*, or give allow_other_arithmetic=True"):
        zo.durable.run(folder, *build())
    zo.durable.run(folder, *build(), allow_other_arithmetic=True).close()
    assert [step for step, _ in json.loads((folder / "arithmetic.json").read_text())] == [0, 4]
    for step in (0, 2, 4):
        checkpoint_path(folder, step).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="is whole"):
        zo.durable.run(folder, *build())


def test_a_pickled_optimizer_is_in_no_run(tmp_path: Path) -> None:
    model, opt = build()
    with zo.durable.run(tmp_path / "run", model, opt):
        assert pickle.loads(pickle.dumps(opt)).log is None
