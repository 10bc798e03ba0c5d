"""Presets with the model sizes of Chaubard and Kochenderfer (arXiv 2505.17852), DNCs of similar sizes, and char-rnn."""

from __future__ import annotations

from typing import NamedTuple


class Preset(NamedTuple):
    """The arguments of `build_model` for one size.

    parameters: number of parameters for 100 tokens, as the paper counts them. For an LSTM it includes 2H numbers for
        the initial states, which here are zeros and not parameters.
    """

    model: str
    embed_dim: int
    hidden_size: int
    num_heads: int
    memory_slots: int | None
    memory_width: int | None
    parameters: int
    num_layers: int = 1


def _lstm(hidden_size: int, num_heads: int, parameters: int) -> Preset:
    return Preset("lstm", 100, hidden_size, num_heads, None, None, parameters)


def _dnc(model: str, size: int, parameters: int) -> Preset:
    """A DNC with the same size for the hidden state, the slots and the width."""
    return Preset(model, 100, size, 1, size, size, parameters)


PRESETS: dict[str, Preset] = {
    "paper-lstm-100k": _lstm(240, 12, 150_740),
    "paper-lstm-1m": _lstm(1_600, 32, 1_139_700),
    "paper-lstm-10m": _lstm(9_600, 64, 10_627_700),
    "paper-lstm-100m": _lstm(66_000, 220, 112_606_100),
    "paper-lstm-1.1b": _lstm(297_500, 350, 1_162_045_100),
    "paper-lstm-4.5b": _lstm(1_000_000, 1_000, 4_506_010_100),
    "paper-dnc-300k": _dnc("paper-dnc", 128, 287_165),
    "paper-dnc-1m": _dnc("paper-dnc", 256, 957_245),
    "paper-dnc-3.5m": _dnc("paper-dnc", 512, 3_477_053),
    "paper-dnc-13m": _dnc("paper-dnc", 1_024, 13_235_261),
    "dnc-300k": _dnc("dnc", 128, 285_564),
    "dnc-1m": _dnc("dnc", 256, 954_236),
    "dnc-3.5m": _dnc("dnc", 512, 3_471_228),
    "dnc-13m": _dnc("dnc", 1_024, 13_223_804),
    # The default of Karpathy's char-rnn, but that the input projection of a token is the product of two matrices.
    "char-rnn": Preset("lstm", 128, 128, 1, None, None, 288_868, num_layers=2),
}
"""Presets by name. The task determines the vocabulary size."""
