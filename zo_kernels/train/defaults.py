"""The config of each task that no flag has changed."""

from __future__ import annotations

from dataclasses import replace

from .config import TrainConfig

_LETTERS = TrainConfig(
    task="copy",
    max_length=5,
    alphabet_size=4,
    curriculum=0,
    embed_dim=16,
    hidden_size=64,
    batch_size=64,
    lr=0.3,
    eps=0.03,
    steps=800,
)
_CHARACTERS = TrainConfig(
    task="text",
    context_length=10,
    curriculum=0,
    embed_dim=64,
    hidden_size=64,
    batch_size=64,
    lr=1.0,
    eps=0.05,
    steps=800,
)
DEFAULTS = {
    "copy": _LETTERS,
    "reverse": replace(_LETTERS, task="reverse"),
    "sort": replace(_LETTERS, task="sort"),
    "repeat-copy": replace(_LETTERS, task="repeat-copy", max_length=3, max_repeats=3),
    "add": replace(_LETTERS, task="add", max_length=2, alphabet_size=10, lr=0.6, steps=1000),
    "rolling-sum": replace(_LETTERS, task="rolling-sum", alphabet_size=10, lr=1.0),
    "overfit": replace(
        _LETTERS, task="overfit", max_length=None, curriculum=None, context_length=100, alphabet_size=26, batch_size=1
    ),
    "text": _CHARACTERS,
    "ptb": replace(_CHARACTERS, task="ptb"),
    "owt": replace(
        _CHARACTERS,
        task="owt",
        dataset="Skylion007/openwebtext",
        tokenizer="gpt2",
        max_tokens=10_000_000,
        batch_size=8,
        lr=0.2,
        probes=32,
        steps=100,
    ),
}
"""The config of each task that no flag has changed. Each trains in under two minutes on two cores.

The paper ties eps to lr; an eps ten or twenty times smaller learns much faster on all tasks.
"""
