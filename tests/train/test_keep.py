"""The best checkpoint of a run, and early stopping, also of a run that dies."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

from tests.train.crashes import finish, launch, runs_alike
from tests.train.runs import SMALL, metrics_of, weights_of, without_times
from zo_kernels.errors import UsageError
from zo_kernels.generate import load_run
from zo_kernels.plot import plot_runs
from zo_kernels.replay import replay
from zo_kernels.run.best import Best, best_of
from zo_kernels.run.checkpoint import load_checkpoint
from zo_kernels.run.folder import checkpoint_path, checkpoint_steps
from zo_kernels.train import TrainResult, default_config, run
from zo_kernels.train.__main__ import main
from zo_kernels.train.check import check

RUN = [
    *SMALL,
    *("--steps", "40", "--checkpoint-every", "7", "--validate-every", "3", "--keep-checkpoints", "1"),
    *("--keep", "best:longer", "--patience", "4", "--lr", "0.6", "--seed", "2"),
]
"""The loss of its set longer rises before the end, and so it does with BPTT."""
BPTT = ["--solver", "bptt", "--lr", "0.075"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    return out


def best_of_metrics(folder: Path) -> int:
    losses = {line["step"]: line["longer_loss"] for line in metrics_of(folder) if "longer_loss" in line}
    return int(min(losses, key=losses.__getitem__))


def best_model(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(checkpoint_path(folder, best_of_metrics(folder))).model)


def are_alike(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_an_equal_loss_is_not_better_and_one_not_finite_never_is() -> None:
    assert best_of([]) is None
    assert best_of([(0, float("nan")), (1, float("inf"))]) is None
    assert best_of([(0, float("nan")), (1, 2.0), (2, 1.0), (3, 1.0), (4, float("nan"))]) == Best(2, 1.0, since=2)


def test_the_run_ends_early_and_keeps_its_best(whole: Path) -> None:
    lines, best = metrics_of(whole), best_of_metrics(whole)
    assert 0 < best < lines[-1]["step"] == best + 4 * 3 < 40
    assert checkpoint_steps(whole) == [0, best, best + 12]
    assert not are_alike(best_model(whole), weights_of(whole))


def test_its_best_is_taken_by_name(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = best_of_metrics(whole)
    replayed = replay(whole, "best")
    assert (replayed.step, replayed.replayed) == (best, 0)
    assert are_alike(dict(replayed.weights), best_model(whole))
    assert are_alike(dict(load_run(whole, step="best").model.state_dict()), best_model(whole))
    assert are_alike(dict(load_run(whole, step=0).model.state_dict()), dict(replay(whole, 0).weights))
    fork = tmp_path / "fork"
    flags = ["--patience", "1000", "--steps", str(best + 1), "--out", str(fork)]
    assert main(["--fork", str(whole), "--fork-step", "best", *flags]) == 0
    assert checkpoint_steps(fork)[0] == best
    assert are_alike(dict(load_checkpoint(checkpoint_path(fork, best)).model), best_model(whole))


def test_without_its_checkpoint_the_best_is_replayed_but_not_loaded(whole: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(whole, tmp_path / "copy"))
    best = best_of_metrics(whole)
    checkpoint_path(copy, best).unlink()
    assert are_alike(dict(replay(copy, "best").weights), best_model(whole))
    with pytest.raises(
        UsageError, match=rf"has no checkpoint of its best step, {best} \(resume it\): it has those of 0,"
    ):
        load_run(copy, step="best")
    with pytest.raises(UsageError, match=r"has no checkpoint of step 1: it has those of 0,"):
        load_run(copy, step=1)
    shutil.copy(checkpoint_path(copy, 0), checkpoint_path(copy, best))
    with pytest.raises(UsageError, match="is a checkpoint of another run"):
        load_run(copy, step="best")


@pytest.mark.parametrize(
    ("solver", "moment"),
    [
        ("zo", "best scored"),
        ("zo", "last one scored"),
        ("bptt", "best scored"),
        pytest.param("zo", "checkpoint of the best begun", marks=pytest.mark.slow),
        pytest.param("zo", "row after it", marks=pytest.mark.slow),
        pytest.param("bptt", "checkpoint of the best begun", marks=pytest.mark.slow),
        pytest.param("bptt", "last one scored", marks=pytest.mark.slow),
    ],
)
def test_killed_it_keeps_the_same_best(solver: str, moment: str, whole: Path, tmp_path: Path) -> None:
    flags, out = RUN, tmp_path / "run"
    if solver == "bptt":
        flags, whole = [*RUN, *BPTT], tmp_path / "whole"
        assert main([*flags, "--out", str(whole)]) == 0
    best = best_of_metrics(whole)
    validation = best // 3
    saves = sum(  # before that of the best
        step == 0 or step % 7 == 0 or (step % 3 == 0 and is_new_best(whole, step)) for step in range(best)
    )
    place = {  # a validation writes its scores, and then what it took
        "best scored": ("scores written", 2 * validation),
        "checkpoint of the best begun": ("checkpoint not begun", saves),
        "row after it": ("row written", best),
        "last one scored": ("scores written", 2 * (validation + 4)),
    }
    assert finish([*flags, "--out", str(out)], *place[moment]) == -9
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)
    assert without_times(out) == without_times(whole)
    assert checkpoint_steps(out) == checkpoint_steps(whole)
    assert are_alike(best_model(out), best_model(whole))


def is_new_best(folder: Path, step: int) -> bool:
    losses = {line["step"]: line["longer_loss"] for line in metrics_of(folder) if "longer_loss" in line}
    return all(losses[step] < loss for before, loss in losses.items() if before < step)


def test_killed_at_its_end_it_still_tests(book: Path, tmp_path: Path) -> None:
    text = ["--task", "text", "--data", str(book), "--context-length", "8", "--parts", "0.6,0.2,0.2", *SMALL]
    flags = [*text, "--steps", "40", "--validate-every", "1", "--patience", "2", "--lr", "3"]
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert finish([*flags, "--out", str(whole)]) == 0
    assert "test_loss" in metrics_of(whole)[-1]
    assert metrics_of(whole)[-1]["step"] < 40
    validations = sum("validation_loss" in line for line in metrics_of(whole))
    # Each validation writes its scores, then what it took: the last one writes those of the test between.
    assert finish([*flags, "--out", str(out)], "scores written", 2 * (validations - 1)) == -9
    assert "test_loss" not in metrics_of(out)[-1]
    assert finish(["--resume", str(out)]) == 0
    assert without_times(out) == without_times(whole)


def test_more_patience_goes_on(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main([*RUN, "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    best = best_of_metrics(out)
    assert f"after step {best}, kept as a checkpoint\n" in shown
    assert "lowest longer loss" in shown
    assert "stopped early, before step 40: 4 validations without a lower loss\n" in shown
    assert main(["--resume", str(out)]) == 0
    assert metrics_of(out)[-1]["step"] == best + 12
    assert main(["--resume", str(out), "--patience", "5"]) == 0
    assert metrics_of(out)[-1]["step"] > best + 12


def test_processes_stop_together(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert [code for code, _ in launch([*RUN, "--out", str(out)], 2).finish()] == [0, 0]
    assert runs_alike(out, whole)
    assert checkpoint_steps(out) == checkpoint_steps(whole)
    again = launch([*RUN, "--out", str(out)], 2).finish()
    assert [code for code, _ in again] == [0, 0]
    assert runs_alike(out, whole)


def test_pictures_mark_it(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), path.write_bytes(b"")))
    plot_runs([whole], tmp_path / "x.png", x=["steps"], sets=["longer"])
    run(default_config("copy", device="cpu", steps=2, probes=2, keep="best", out=tmp_path / "run"))
    for figure, name in zip(figures, ("longer", "validation"), strict=True):
        folder = whole if name == "longer" else tmp_path / "run"
        losses = {line["step"]: line[f"{name}_loss"] for line in metrics_of(folder) if f"{name}_loss" in line}
        (star,) = [line for line in figure.axes[0].lines if line.get_marker() == "*"]
        best = min(losses, key=losses.__getitem__)
        assert (list(star.get_xdata()), list(star.get_ydata())) == ([best], [losses[best]])


def test_from_python(tmp_path: Path) -> None:
    def small(name: str, **flags: Any) -> TrainResult:
        sizes = {"embed_dim": 2, "hidden_size": 4, "batch_size": 2, "probes": 2, "device": "cpu"}
        return run(default_config("copy", **sizes, validate_every=1, out=tmp_path / name, **flags), quiet=True)

    result = small("plain", steps=2)
    assert (result.best, result.stopped_early) == (None, False)
    result = small("patient", steps=50, patience=1, lr=1.0)
    losses = [line["validation_loss"] for line in result.metrics]
    assert result.stopped_early
    assert result.best == Best(len(losses) - 2, losses[-2], since=1)
    checkpoint_path(result.folder, len(losses) - 2).unlink(missing_ok=True)
    with pytest.raises(UsageError, match=r"of its best step, \d+ \(train with --keep best\): it has those of"):
        load_run(result.folder, step="best")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"keep": "last"}, "--keep must be best, or best: and the name of a set, such as best:longer, not last"),
        ({"keep": "best:"}, "--keep must be best, or"),
        ({"patience": 0}, "--patience must be at least 1, not 0"),
        ({"fork_step": "worst"}, "--fork-step "),
    ],
)
def test_bad_values(changes: dict[str, object], sentence: str, whole: Path) -> None:
    config = default_config("copy")
    object.__setattr__(config, *next(iter(changes.items())))
    if "fork_step" in changes:
        object.__setattr__(config, "fork", whole)
    with pytest.raises(UsageError) as error:
        check(config)
    assert str(error.value).startswith(sentence)


def test_a_set_that_is_not_there(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(UsageError, match=r"validated on \(validation, longer\), not test$"):
        run(default_config("copy", device="cpu", keep="best:test", out=out))
    assert not out.exists()
