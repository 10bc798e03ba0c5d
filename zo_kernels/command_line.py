"""What the package's command lines share."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import PurePath
from types import FrameType
from typing import Any, NoReturn

EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED = 0, 2, 130
"""Exit codes: everything was done, a message on stderr says why not, or Ctrl-C came first."""

SCRIPTS = ("zo-generate", "zo-plot", "zo-predict", "zo-replay", "zo-train")
"""The commands that an installation puts on PATH."""

_is_main_running = False


def set_up_program() -> None:
    """Prepares this process if it is a program of this package; does nothing in any other that imports the package.

    The package calls it before it imports torch, which takes long and whose OpenMP reads its settings only then.

    From here on, Ctrl-C ends the program without a traceback, except while its `main` runs. OpenMP's threads sleep when
    they have nothing to do, unless OMP_WAIT_POLICY says otherwise: threads that spin hold the cores which others need.
    MPLBACKEND is ignored.
    """
    if not _is_program():
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.pop("MPLBACKEND", None)  # no program shows a window, and matplotlib can't be imported with a wrong one
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # and not ignored, by nohup
        signal.signal(signal.SIGINT, _handle_interrupt)


def run_program(main: Callable[[], int]) -> NoReturn:
    """Runs the `main` of a program, and ends the process with the exit code that it returns, or 130 after Ctrl-C.

    Any other error that leaves `main` is reported in one line, and the exit code is 2. ZO_KERNELS_TRACEBACK=1 in the
    environment shows where it was raised.

    Characters that stdout can't encode are printed as escapes, such as \\xe9.
    """
    global _is_main_running
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _is_main_running = True
        try:
            code = main()
        finally:
            _flush()
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        if os.environ.get("ZO_KERNELS_TRACEBACK"):
            raise
        code = EXIT_ERROR
        print(f"error: {_describe(error)}", file=sys.stderr)
    finally:
        _is_main_running = False
    sys.exit(code)


def _describe(error: Exception) -> str:
    from .errors import first_line, is_out_of_memory  # not above: they import torch

    if is_out_of_memory(error):
        return f"memory ran out: {first_line(error)}"
    if isinstance(error, OSError):
        return str(error)
    hint = "set ZO_KERNELS_TRACEBACK=1 to see where, and report it"
    return f"unexpected {type(error).__name__} ({first_line(error)}): {hint}"


def _is_program() -> bool:
    """Whether this package is being imported to run one of its modules, by `python -m` or by an installed script."""
    if PurePath(sys.argv[0] if sys.argv else "").name in SCRIPTS:
        return True
    # Until -m has found the module, argv[0] is "-m". The name of the module stands before the program's own arguments.
    return sys.argv[:1] == ["-m"] and bool(
        re.fullmatch(rf"(-\w*m)?{__package__}(\.\w+)*", sys.orig_argv[-len(sys.argv)])
    )


def _handle_interrupt(_number: int, _frame: FrameType | None) -> None:
    if _is_main_running:
        raise KeyboardInterrupt
    os._exit(EXIT_INTERRUPTED)  # an exception might be lost in the module or the destructor where it is raised


def _flush() -> None:
    with contextlib.suppress(OSError):  # Python tries again as it ends, and reports the error
        if sys.stdout is not None:
            sys.stdout.flush()


def option(metavar: str, hint: str | None = None) -> Any:
    """Annotates a field with how --help shows its flag.

    metavar: what stands for the value. hint: what stands, in parentheses, for the default; None shows the default.
    """
    import tyro  # not above: the package imports this module before anything that takes long

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=None if hint is None else f"({hint})")


def choice(names: Any, hint: str | None = None) -> Any:
    """Annotates a field whose value is one of these names. hint: as for `option`."""
    return option("{" + ",".join(names) + "}", hint)


def flag(field: str) -> str:
    """Spells a field as a flag of the command line."""
    return "--" + field.replace("_", "-")
