"""Figure 3: the peak memory of a step against model size, context length and batch size, each in a fresh process."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from matplotlib.figure import Figure

from zo_kernels.models.presets import PRESETS

from .fresh import measure as measure_fresh
from .options import Options
from .pages import table
from .trials import Settings, Trials

WAYS = {
    "CD-RGE": "#d62728",
    "BPTT": "#1f77b4",
    "BPTT, checkpoints": "#17becf",
    "transformer": "#7f7f7f",
}
SIZES = ("100k", "1m", "10m")
SWEEPS: dict[str, list[tuple[str, int, int]]] = {
    "model size": [(size, 100, 16) for size in SIZES],
    "context length": [("100k", length, 1) for length in (100, 1_600, 6_400, 25_600)],
    "batch size": [("100k", 100, batch_size) for batch_size in (1, 8, 64, 512)],
}
"""Size, context length and batch size of each point."""

QUICK = {"model size": [("100k", 20, 2)]}
MOST_MB = 12_000.0
VOCABULARY = 100


def measure(trials: Trials, options: Options) -> None:
    for points in (QUICK if options.quick else SWEEPS).values():
        for size, length, batch_size in points:
            for way in WAYS:
                settings = {"way": way, "size": size, "context_length": length, "batch_size": batch_size}
                if formula(way, size, length, batch_size) <= MOST_MB * 1e6:
                    trials.run(settings, partial(_peak, settings))


def _peak(settings: Settings) -> dict[str, float]:
    """The memory of two steps: the second one meets what the first one left."""
    size, length, batch_size = (settings[key] for key in ("size", "context_length", "batch_size"))
    if settings["way"] == "transformer":
        parameters = PRESETS[f"paper-lstm-{size}"].parameters
        return measure_fresh(2, [str(parameters), str(length), str(batch_size)], way="transformer")
    flags = ["--task", "overfit", "--preset", f"paper-lstm-{size}", "--alphabet-size", str(VOCABULARY)]
    flags += ["--context-length", str(length), "--batch-size", str(batch_size), "--threads", "1"]
    if settings["way"] == "CD-RGE":
        return measure_fresh(2, [*flags, "--probes", "2"])
    flags += ["--solver", "bptt", "--optimizer", "sgd"]
    checkpoints = ["--checkpoint-length", str(_piece(int(length)))] if "checkpoints" in str(settings["way"]) else []
    return measure_fresh(2, [*flags, *checkpoints])


def _piece(length: int) -> int:
    return max(1, round(length**0.5))


def formula(way: str, size: str, length: int, batch_size: int) -> float:
    """Bytes of a step by what has to be kept in float32, with P parameters, T tokens, B sequences and V symbols.

    CD-RGE keeps the parameters and the states, BPTT with SGD the parameters, their gradients and what each token
    leaves: of an LSTM its input, four gates, the state and its tanh, the output, and the logits with their
    probabilities. With checkpoints every sqrt(T) tokens it is that for sqrt(T) tokens and two states for each piece.
    A transformer leaves 34 numbers for each channel and layer, by the count of arXiv 2205.05198 for its products and
    norms, and with a mask the scores of all pairs, before and after softmax.
    """
    from .transformer import HEADS, LAYERS, width_of

    preset = PRESETS[f"paper-lstm-{size}"]
    p, h, tokens = preset.parameters, preset.hidden_size, length * batch_size
    token = preset.embed_dim + 7 * h + 2 * VOCABULARY
    if way == "CD-RGE":
        return 4 * (p + 2 * h * batch_size) + 16 * tokens
    if way == "BPTT":
        return 4 * (2 * p + token * tokens)
    if way == "BPTT, checkpoints":
        piece = _piece(length)
        return 4 * (2 * p + token * piece * batch_size + 2 * h * batch_size * -(-length // piece))
    channels = 17 * width_of(p) * LAYERS + 2 * VOCABULARY  # 34 bytes of 16-bit numbers each are 17 numbers
    return 4 * (2 * p + channels * tokens + 2 * LAYERS * HEADS * length * tokens)


def draw(trials: Trials, path: Path) -> bool:
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    for axis, (name, points) in zip(figure.subplots(1, 3, sharey=True), SWEEPS.items(), strict=True):
        xs = [(PRESETS[f"paper-lstm-{s}"].parameters, t, b)[list(SWEEPS).index(name)] for s, t, b in points]
        for way, color in WAYS.items():
            found = [(x, mb) for x, point in zip(xs, points, strict=True) if (mb := _beyond(trials, way, *point))]
            axis.plot(*zip(*found, strict=True) if found else ([], []), "o", color=color, label=way)
            axis.plot(xs, [formula(way, *point) / 1e6 for point in points], color=color, linewidth=1)
        axis.set(xscale="log", yscale="log", xlabel=name, ylim=(0.3, 5e4))
    figure.axes[0].set_ylabel("memory of a step, MB")
    figure.axes[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return True


def _beyond(trials: Trials, way: str, size: str, length: int, batch_size: int) -> float | None:
    found = trials.find({"way": way, "size": size, "context_length": length, "batch_size": batch_size})
    return None if found is None or "failed" in found else max(0.1, found["peak_mb"] - found["base_mb"])


def tables(trials: Trials) -> str:
    rows = []
    for name, points in SWEEPS.items():
        for size, length, batch_size in points:
            cells = []
            for way in WAYS:
                mb, expected = _beyond(trials, way, size, length, batch_size), formula(way, size, length, batch_size)
                line = f"({expected / 1e6:,.3g})"
                missing = "not run" if expected > MOST_MB * 1e6 else "not yet measured"
                cells.append(f"{mb:,.0f} {line}" if mb else f"{missing} {line}")
            rows.append([name, size, f"{length:,}", f"{batch_size:,}", *cells])
    return table(["against", "parameters", "context", "batch", *(f"{way}, MB" for way in WAYS)], rows)
