"""What only forward passes can do: one sequence of up to a million tokens of text, and a training run on such."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .fresh import measure as measure_fresh
from .options import Options
from .pages import table
from .training import train
from .trials import Settings, Trials

TOKENS = (1_000, 10_000, 100_000, 1_000_000)
SIZES = ("100k", "1m")
_PIECE = 1_000
WAYS: dict[str, dict[str, str | int]] = {
    "CD-RGE": {},
    "BPTT": {"solver": "bptt", "optimizer": "sgd"},
    "BPTT, checkpoints": {"solver": "bptt", "optimizer": "sgd", "checkpoint_length": _PIECE},
}
MOST_MB = 8_000.0
PARTS = "0.6,0.2,0.2"
"""Of the text: each holds a window of a million tokens of the Penn Treebank's six."""

RUN: dict[str, str | int | float] = {
    "task": "text",
    "parts": PARTS,
    "batch_size": 1,
    "context_length": 1_000_000,
    "segment_length": 10_000,
    "preset": "paper-lstm-100k",
    "probes": 16,
    "lr": 0.2,
    "lr_decay": 1,
    "eps": 0.05,
    "steps": 40,
    "validate_every": 4,
    "eval_tokens": 1_000_000,
    "checkpoint_every": 2,
}
"""The training run: its flags on the command line."""


def measure(trials: Trials, options: Options) -> None:
    text = _write_text(options)
    if text is None:
        print("long-context needs a text: give --data")
        return
    for part in ("memory", "time"):
        for tokens in TOKENS[:1] if options.quick else TOKENS:
            for size in SIZES[:1] if options.quick else SIZES:
                for way in WAYS:
                    settings = {"part": part, "size": size, "way": way, "tokens": tokens}
                    if expected(trials, size, way, tokens) <= MOST_MB:
                        trials.run(settings, partial(_step, settings, text), timed=part == "time")
    quick = {"context_length": 200, "segment_length": 50, "steps": 2, "eval_tokens": 200, "probes": 2}
    flags = {**RUN, **(quick if options.quick else {})}
    extra = {"data": text, "threads": options.threads}
    trials.run({"part": "run", **flags}, partial(train, flags, options.runs, extra))


def _write_text(options: Options) -> Path | None:
    """The three files of the Penn Treebank, one after the other."""
    if options.data is None:
        return None
    path = options.runs / "long.txt"
    parts = (options.data / f"ptb.{part}.txt" for part in ("train", "valid", "test"))
    path.write_text("".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")
    return path


def _step(settings: Settings, text: Path) -> dict[str, Any]:
    tokens = int(settings["tokens"])
    flags = ["--task", "text", "--data", str(text), "--parts", PARTS, "--context-length", str(tokens)]
    flags += ["--batch-size", "1", "--preset", f"paper-lstm-{settings['size']}", "--threads", "1"]
    flags += ["--probes", "8" if settings["part"] == "time" else "2"]  # their number hardly takes memory
    for key, value in WAYS[str(settings["way"])].items():
        flags += [f"--{key.replace('_', '-')}", str(value)]
    found = measure_fresh(1 if tokens > 10_000 else 2, flags)
    return found if settings["part"] == "time" else {k: v for k, v in found.items() if k not in ("wall_s", "cpu_s")}


def growth(trials: Trials, size: str, way: str) -> tuple[float, float] | None:
    """MB of a step without tokens, and MB for each token, by the two longest contexts; None before there are two."""
    found = [
        (each["settings"]["tokens"], each["found"]["peak_mb"])
        for each in trials.select(part="memory", size=size, way=way)
        if "failed" not in each["found"]
    ]
    if len(found) < 2:
        return None
    (short, small), (long, large) = sorted(found)[-2:]
    each = (large - small) / (long - short)
    return large - each * long, each


def expected(trials: Trials, size: str, way: str, tokens: int) -> float:
    """MB of a step, by the contexts that are measured; 0 before there are two."""
    line = growth(trials, size, way)
    return 0.0 if line is None else line[0] + line[1] * tokens


def limit(trials: Trials, size: str, way: str) -> float | None:
    """Tokens at which a step needs more than 8 GB, by the growth between the two longest contexts."""
    line = growth(trials, size, way)
    return None if line is None or line[1] <= 0 else (MOST_MB - line[0]) / line[1]


def draw(trials: Trials, path: Path) -> bool:
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    memory, loss = figure.subplots(1, 2)
    for size, marker in zip(SIZES, ("o-", "s--"), strict=True):
        for way, color in zip(WAYS, ("#d62728", "#1f77b4", "#17becf"), strict=True):
            some = [each for each in trials.select(part="memory", size=size, way=way) if "failed" not in each["found"]]
            points = [(each["settings"]["tokens"], each["found"]["peak_mb"]) for each in some]
            memory.plot(*zip(*points, strict=True) if points else ([], []), marker, color=color, label=f"{way}, {size}")
    memory.axhline(MOST_MB, color="black", linewidth=0.8, linestyle=":")
    memory.set(xscale="log", yscale="log", xlabel="tokens of the sequence", ylabel="peak memory, MB")
    memory.set_ylim(top=10 * MOST_MB)  # room for the legend
    memory.legend(fontsize=8, frameon=False)
    for each in trials.select(part="run"):
        steps, losses, _ = zip(*each["found"]["curve"], strict=True)
        loss.plot(steps, losses, "o-", color="#d62728", markersize=3)
        loss.set_title(f"one sequence of {each['settings']['context_length']:,} tokens a step", fontsize=10)
    loss.set(xlabel="step", ylabel="validation loss, nats per character")
    figure.savefig(path, dpi=130)
    return True


def tables(trials: Trials) -> str:
    parts = []
    for key, part, unit in (("peak_mb", "memory", "MB"), ("wall_s", "time", "s")):
        rows = []
        for size in SIZES:
            for way in WAYS:
                cells = [_cell(trials, part, key, size, way, tokens) for tokens in TOKENS]
                last = limit(trials, size, way) if "BPTT" in way else None
                shown = "" if last is None else f"{float(f'{last:.2g}'):,.0f}"
                rows.append([size, way, *cells, *([shown] if part == "memory" else [])])
        head = ["parameters", "way", *(f"{tokens:,} tokens, {unit}" for tokens in TOKENS)]
        parts.append(table([*head, *(["8 GB at, tokens"] if part == "memory" else [])], rows))
    rows = []
    for each in trials.select(part="run"):
        settings, curve = each["settings"], each["found"]["curve"]
        sizes = [f"{settings[key]:,}" for key in ("context_length", "probes", "steps")]
        rows.append([*sizes, f"{curve[0][1]:.3f}", f"{each['found']['best']['loss']:.3f}"])
    head = ["tokens of a step", "probes", "steps", "validation loss at the start", "lowest"]
    parts.append(table(head, rows or [["not yet measured", "", "", "", ""]]))
    return "\n\n".join(parts)


def _cell(trials: Trials, part: str, key: str, size: str, way: str, tokens: int) -> str:
    found = trials.find({"part": part, "size": size, "way": way, "tokens": tokens})
    if found is not None:
        return (
            found["failed"] if "failed" in found else f"{found[key]:,.3g}" if key == "wall_s" else f"{found[key]:,.0f}"
        )
    would = expected(trials, size, way, tokens)
    return f"not run, about {would:,.0f}" if part == "memory" and would > MOST_MB else "not yet measured"
