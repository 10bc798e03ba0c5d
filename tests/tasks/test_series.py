"""The series task: what it reads of a table, and what its batches are."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zo_kernels.tasks import Series
from zo_kernels.tasks.series import Column

ROWS = 200


def write(path: Path, **columns: Any) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def table(path: Path, **more: Any) -> Path:
    at = np.arange(ROWS)
    return write(path, **{"day": [f"d{i}" for i in at], "x": np.sin(at), "y": at % 7 * 10.0, **more})


def series(data: Path, **options: Any) -> Series:
    return Series(**{"data": data, "target": "y", "batch_size": 3, "context_length": 5, "seed": 0, **options})


def test_it_reads_the_other_columns_of_numbers_and_predicts_the_same_row(tmp_path: Path) -> None:
    task = series(table(tmp_path / "a.csv"), parts="0.5,0.25,0.25")
    at = np.arange(ROWS)
    x, y = np.sin(at), at % 7 * 10.0
    assert task.columns.names == ["x"]
    assert not task.columns.is_ahead
    assert list(map(Column.read, task.symbols)) == [*task.columns.inputs, task.columns.target]
    assert task.columns.target == Column("y", y[:100].mean(), y[:100].std())
    (batch, *_) = task.validation_batches()["validation"]
    rows = slice(100, 105)
    np.testing.assert_allclose(batch.tokens[0, :, 0], (x[rows] - x[:100].mean()) / x[:100].std(), rtol=1e-5)
    np.testing.assert_allclose(batch.targets[0], (y[rows] - y[:100].mean()) / y[:100].std(), rtol=1e-5)
    assert task.reference_losses["mean"] == 1
    assert task.reference_losses["last target"] == pytest.approx(np.mean(np.diff(y[:100]) ** 2) / y[:100].var())
    assert task.in_words(0.25, 0) == f"RMSE {y[:100].std() / 2:.4g}"
    assert {name: len(batches) for name, batches in task.test_batches().items()} == {"test": 3}


@pytest.mark.parametrize("given", ["x,y", None])
def test_with_the_target_as_an_input_it_predicts_the_next_row(given: str | None, tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv") if given else write(tmp_path / "a.csv", y=np.arange(ROWS) % 7)
    task = series(path, input=given)
    assert task.columns.is_ahead
    tokens, targets = task.batch(3)
    assert tokens.shape == (3, 5, 2 if given else 1)
    assert targets[:, :-1].equal(tokens[:, 1:, -1])
    assert not targets.equal(tokens[..., -1])


@pytest.mark.parametrize(
    ("columns", "options", "sentence"),
    [
        ({}, {"target": "z"}, "has no column 'z', only day, x, y"),
        ({}, {"input": "x,z"}, "has no column 'z', only day, x, y"),
        ({}, {"input": "x,x"}, "an input is named twice: x, x"),
        ({}, {"input": "day"}, "line 2 has 'd0' in 'day', which is no number"),
        ({"z": [1.0] * 9 + [""] * (ROWS - 9)}, {}, "line 11 has '' in 'z', which is no number"),
        ({"z": [1.0] * 9 + ["nan"] * (ROWS - 9)}, {}, "line 11 has 'nan' in 'z', which is no number"),
        ({"z": [1.0] * ROWS}, {}, "the column 'z' of .* is constant in the part for training: leave it out"),
        ({"a\tb": np.arange(ROWS)}, {}, "a tab or a newline in the name"),
        ({}, {"context_length": 20}, "has 200 rows, but --context-length 20 needs at least 420: give at most"),
    ],
)
def test_what_is_refused(columns: dict[str, Any], options: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        series(table(tmp_path / "a.csv", **columns), **options)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "has no rows"),
        ("x,y\n", "has no rows"),
        ("x,x\n1,2\n", "two columns of one name"),
        ("x,y\n1\n", "line 2 has 1 values, but the header has 2"),
        ('x,y\n"1\n', "is not CSV"),
    ],
)
def test_what_is_no_table(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        series(tmp_path / "a.csv")
