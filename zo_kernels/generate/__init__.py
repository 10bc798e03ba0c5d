"""Generates text from a trained model: `python -m zo_kernels.generate`, and the functions behind it.

run = load_run("runs/copy")
state = read_prompt(run.model, run.encode("abca|"))
print(run.decode(generate(run.model, state, 4, temperature=0)))
"""

from ..errors import UsageError
from .decoding import DecodingState, generate, read_prompt
from .run import LoadedRun, load_run
from .state_file import load_state, save_state

__all__ = [
    "DecodingState",
    "LoadedRun",
    "UsageError",
    "generate",
    "load_run",
    "load_state",
    "read_prompt",
    "save_state",
]
