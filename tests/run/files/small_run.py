"""A run of a tiny model that takes a tenth of a second: as the command line runs it, but without parsing flags."""

from __future__ import annotations

import contextlib
import io
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

from zo_kernels.tasks.copy import Copy
from zo_kernels.train import __main__ as program
from zo_kernels.train import api, default_config
from zo_kernels.train.check import check
from zo_kernels.train.config import read_config

PNG = b"\x89PNG\r\n\x1a\n"
SIZES: dict[str, Any] = {
    **{"embed_dim": 4, "hidden_size": 8, "batch_size": 4, "probes": 3, "device": "cpu", "threads": 1},
    **{"checkpoint_every": 6, "keep_checkpoints": 2, "validate_every": 8},
}


class Ended(NamedTuple):
    """How a run ended: its exit code (None: with a traceback), and what it printed."""

    code: int | None
    out: str
    err: str

    @property
    def is_one_sentence(self) -> bool:
        """Whether it ended with an error that is one sentence."""
        return self.code == 2 and self.err.startswith("error: ") and self.err.count("\n") == 1


def train(out: Path, steps: int = 20, *, resume: bool = False) -> Ended:
    """Runs the small run in the folder, from its start or from where it was stopped."""
    validation_batches = Copy.validation_batches

    def parse(*_: object, **__: object) -> Any:
        config = (
            replace(read_config(out), resume=out) if resume else default_config("copy", **SIZES, steps=steps, out=out)
        )
        check(config)
        return config

    with (
        mock.patch.object(program, "parse", parse),
        mock.patch.object(api, "plot_losses", lambda path, *_: path.write_bytes(PNG)),
        mock.patch.object(
            Copy, "validation_batches", lambda self: {n: b[:1] for n, b in validation_batches(self).items()}
        ),
        contextlib.redirect_stdout(io.StringIO()) as printed,
        contextlib.redirect_stderr(io.StringIO()) as error,
    ):
        threads = torch.get_num_threads()
        try:
            code: int | None = program.main([])
        except BaseException:
            code = None
            error.write(traceback.format_exc())
        finally:
            torch.set_num_threads(threads)
    return Ended(code, printed.getvalue(), error.getvalue())
