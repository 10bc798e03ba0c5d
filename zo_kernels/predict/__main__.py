"""The command line: `python -m zo_kernels.predict --help`, or `zo-predict --help`."""

from __future__ import annotations

import csv
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import numpy as np
import tyro

from ..command_line import EXIT_DONE, EXIT_ERROR, option, run_program
from ..errors import UsageError
from ..run.files import write_text
from ..tasks.number_table import as_numbers, read_columns
from .predictor import Predictor, load_predictor


@dataclass(frozen=True)
class PredictConfig:
    """Predict the target of each row of a table with a model trained by python -m zo_kernels.train --task series."""

    run: Annotated[Path, option("FOLDER")]
    """Folder of the training run."""
    data: Annotated[Path, option("FILE")]
    """CSV file with the input columns of the run, in order of time. It is read as one sequence."""
    out: Annotated[Path, option("FILE")]
    """New CSV file: the columns of --data, and one with the predictions."""
    step: Annotated[int | Literal["best"] | None, option("INT|best", "default: the last one")] = None
    """Step whose checkpoint to take the weights of; best: where the loss was lowest, in a run with --keep best."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the predictions that the arguments ask for (None: those of the process) and returns the exit code.

    0 if they were written, 2 after bad input.
    """
    config = tyro.cli(PredictConfig, prog="python -m zo_kernels.predict", args=arguments)
    try:
        print(_predict(config))
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    return EXIT_DONE


def _predict(config: PredictConfig) -> str:
    """Writes the file, and returns a line about it."""
    if os.path.lexists(config.out):
        raise UsageError(f"{config.out} exists and is not overwritten: give --out another name")
    if not config.out.parent.is_dir():
        raise UsageError(f"can't write {config.out}: there is no folder {config.out.parent}")
    predictor = load_predictor(config.run, step=config.step)
    names, target = predictor.columns.names, predictor.columns.target.name
    try:
        table = read_columns(config.data)
        predictions = predictor.predict(as_numbers(config.data, table, names))
        known = as_numbers(config.data, table, [target])[:, 0] if target in table else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    title = f"predicted next {target}" if predictor.columns.is_ahead else f"predicted {target}"
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table, title])
    columns = [[value for _, value in values] for values in table.values()]
    writer.writerows(zip(*columns, (f"{x:.9g}" for x in predictions), strict=True))
    try:
        write_text(config.out, text.getvalue())
    except OSError as error:
        raise UsageError(f"can't write {config.out}: {error.strerror}") from error
    return f"{len(predictions)} predictions in {config.out}{_error(predictor, predictions, known)}"


def _error(predictor: Predictor, predictions: np.ndarray, known: np.ndarray | None) -> str:
    """The root of the mean squared error, where the table has the target."""
    ahead = int(predictor.columns.is_ahead)
    if known is None or len(known) <= ahead:
        return ""
    errors = predictions[: len(predictions) - ahead] - known[ahead:]
    return f"; RMSE {np.sqrt(np.mean(errors**2)):.4g}"


def program() -> NoReturn:
    """The script `zo-predict`: runs `main` and ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
