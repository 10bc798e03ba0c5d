"""A series from a table to predictions: training, dying, resuming, replaying, plotting, predicting."""

import csv
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tests.train.crashes import finish, runs_alike
from tests.train.runs import metrics_of, weights_of, without_times
from zo_kernels.errors import UsageError
from zo_kernels.generate import load_run
from zo_kernels.plot import plot_runs
from zo_kernels.predict import load_predictor
from zo_kernels.predict.__main__ import main as predict
from zo_kernels.replay import replay
from zo_kernels.train.__main__ import main

SIZES = [
    *("--embed-dim", "2", "--hidden-size", "4", "--batch-size", "4", "--context-length", "6", "--probes", "4"),
    *("--steps", "20", "--validate-every", "4", "--checkpoint-every", "5", "--device", "cpu", "--keep", "best"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "waves.csv"
    rows = [(f"t{t}", math.sin(t / 2), 100 + 20 * math.sin(t / 2 + 0.3)) for t in range(300)]
    path.write_text("time,x,y\n" + "".join(f"{time},{x},{y}\n" for time, x, y in rows))
    return path


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert main([*flags(data), "--out", str(out)]) == 0
    return out


def flags(data: Path, *more: str) -> list[str]:
    return ["--task", "series", "--data", str(data), "--target", "y", *SIZES, *more]


def test_it_learns_and_says_so_in_units_of_the_data(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main([*flags(data), "--solver", "bptt", "--lr", "0.03", "--steps", "60", "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "task    series: y of the same row from x; losses are mean squared errors of normalised values" in shown
    assert "forward torch, and back-propagation through it" in shown
    lines = metrics_of(out)
    assert lines[-1]["validation_loss"] < 0.1 < 0.5 < lines[0]["validation_loss"]
    assert not any(name.endswith("accuracy") for line in lines for name in line)
    deviation = load_predictor(out).columns.target.deviation
    assert f"validation {lines[-1]['validation_loss']:.3f} (RMSE" in shown
    assert f"RMSE {deviation * math.sqrt(lines[-1]['validation_loss']):.4g}" in shown


@pytest.mark.parametrize("kind", [[], ["--stateful", "--input", "x,y"]], ids=["windows", "stateful"])
def test_killed_it_goes_on(kind: list[str], data: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if kind:
        whole = tmp_path / "whole"
        assert main([*flags(data, *kind), "--out", str(whole)]) == 0
    assert finish([*flags(data, *kind), "--out", str(out)], "row written", 13) == -9
    assert finish(["--resume", str(out)]) == 0
    assert runs_alike(out, whole)
    assert without_times(out) == without_times(whole)
    replayed = replay(out, 20).weights
    assert all(torch.equal(x, replayed[name]) for name, x in weights_of(out).items())


def test_changed_data_are_noticed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy, out = tmp_path / "waves.csv", tmp_path / "run"
    copy.write_text(data.read_text())
    assert main([*flags(copy, "--steps", "2"), "--out", str(out)]) == 0
    copy.write_text(data.read_text().replace("t0,0.0,", "t0,5.0,"))
    assert main(["--resume", str(out)]) == 2
    assert "the data of" in capsys.readouterr().err


@pytest.mark.parametrize("step", [None, "best"])
def test_predictions_are_those_of_the_model(step: str | None, whole: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "predictions.csv"
    more = [] if step is None else ["--step", step]
    assert predict(["--run", str(whole), "--data", str(data), "--out", str(out), *more]) == 0
    rows = list(csv.DictReader(out.open()))
    predictor = load_predictor(whole, step="best" if step else None)
    x, y = predictor.columns.inputs[0], predictor.columns.target
    inputs = np.array([[float(row["x"])] for row in rows])
    normal = torch.tensor((inputs - x.mean) / x.deviation, dtype=torch.float32)[None]
    expected = predictor.model(normal)[0][0, :, 0].double().numpy() * y.deviation + y.mean
    np.testing.assert_allclose([float(row["predicted y"]) for row in rows], expected, rtol=1e-6)
    np.testing.assert_allclose(predictor.predict(inputs[:7]), expected[:7], rtol=1e-6)
    assert [row["time"] for row in rows] == [f"t{t}" for t in range(300)]


def test_the_next_row_is_predicted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, file = tmp_path / "run", tmp_path / "next.csv"
    assert main([*flags(data, "--input", "y"), "--out", str(out)]) == 0
    capsys.readouterr()
    assert predict(["--run", str(out), "--data", str(data), "--out", str(file)]) == 0
    rows = list(csv.DictReader(file.open()))
    errors = [float(a["predicted next y"]) - float(b["y"]) for a, b in pairwise(rows)]
    assert capsys.readouterr().out == f"300 predictions in {file}; RMSE {np.sqrt(np.mean(np.square(errors))):.4g}\n"


def test_pictures_have_its_unit(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (figures.append(self), path.write_bytes(b"")))
    plot_runs([whole], tmp_path / "x.png", x=["steps"])
    axes = figures[0].axes[0]
    assert axes.get_ylabel() == "validation loss (mean squared error)"
    assert not axes.texts


def test_what_is_refused(whole: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.csv"
    other.write_text("time,z\n1,2\n")
    for arguments, sentence in (
        (["--data", str(other), "--out", str(tmp_path / "p.csv")], "has no column 'x', only time, z"),
        (["--data", str(data), "--out", str(other)], "exists and is not overwritten"),
        (["--data", str(data), "--out", str(tmp_path / "no" / "p.csv")], "there is no folder"),
        (["--data", str(data), "--out", str(tmp_path / "p.csv"), "--step", "3"], "has no checkpoint of step 3"),
    ):
        assert predict(["--run", str(whole), *arguments]) == 2
        assert sentence in capsys.readouterr().err
    with pytest.raises(UsageError, match="predicts numbers, not text: use python -m"):
        load_run(whole)
    with pytest.raises(UsageError, match=r"inputs must be of shape \[N, 1\] \(x\), not \(3,\)"):
        load_predictor(whole).predict([1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match="inputs must be finite"):
        load_predictor(whole).predict([[math.nan]])
    assert main([*flags(data, "--model", "dnc", "--memory-slots", "2", "--memory-width", "2")]) == 2
    assert "a series of numbers is for the models lstm, gru, elman, not dnc" in capsys.readouterr().err
