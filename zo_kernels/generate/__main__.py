"""The command line: `python -m zo_kernels.generate --help`, or `zo-generate --help`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import torch

from ..command_line import EXIT_DONE, EXIT_ERROR, EXIT_INTERRUPTED, run_program
from ..errors import UsageError
from .config import GenerateConfig, parse
from .decoding import generate, read_prompt
from .run import load_run
from .state_file import check_target, load_state, save_state
from .stream import TextStream


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a text as the arguments say (None: those of the process) and returns the exit code.

    0 if the text is complete or its reader has closed the pipe; 2 after bad input, if the model's logits are not
    finite, or if the text can't be written; 130 after Ctrl-C.
    """
    threads = torch.get_num_threads()
    try:
        return _main(sys.argv[1:] if arguments is None else arguments)
    except BrokenPipeError:  # the reader has seen enough
        return EXIT_DONE
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_ERROR
    finally:
        torch.set_num_threads(threads)


def _main(arguments: Sequence[str]) -> int:
    try:
        config = parse(arguments)
        torch.set_num_threads(config.threads)
        _continue_text(config)
    except FloatingPointError as error:
        _show("\n")  # ends the text so far
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        _show("\n")
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _continue_text(config: GenerateConfig) -> None:
    # All input is checked before the first character appears. --save-state is checked before the prompt is read, since
    # that may take long.
    run = load_run(config.run, step=config.step, allow_import=config.allow_import)
    if config.save_state is not None:
        check_target(config.save_state)
    state = None if config.load_state is None else load_state(config.load_state, run)
    prompt = config.prompt
    if state is None and run.separator not in prompt:  # an input alone: ask for its target
        prompt += run.separator
    if prompt:
        state = read_prompt(run.model, run.encode(prompt), state)
    assert state is not None  # as `check` requires
    if config.save_state is not None:
        save_state(config.save_state, state, run)

    shown = str if config.raw else _escape_controls
    _show(shown(prompt))
    tokens = generate(
        run.model,
        state,
        config.tokens,
        temperature=config.temperature,
        top_k=config.top_k,
        generator=torch.Generator().manual_seed(config.seed),
    )
    stream = TextStream(run.decode, run.encode(prompt)[0].tolist() if prompt else [])
    for token in tokens:
        if token == run.end:
            break
        _show(shown(stream.push(token)))
    _show(shown(stream.close()) + "\n")


def _escape_controls(text: str) -> str:
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def _show(text: str) -> None:
    """Prints without delay. Raises BrokenPipeError if the reader is gone, and UsageError if it can't be written."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        # Python flushes stdout again at exit and would raise the same error: send that to nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"can't print the text: {error.strerror}") from error


def program() -> NoReturn:
    """The script `zo-generate`: runs `main` and ends the process."""
    run_program(main)


if __name__ == "__main__":
    program()
