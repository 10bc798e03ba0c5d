"""Small runs for the tests of `python -m zo_kernels.train`, and what they leave."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

SMALL = [
    *("--embed-dim", "4", "--hidden-size", "8", "--batch-size", "4", "--probes", "3", "--steps", "5"),
    *("--device", "cpu"),
]
FILES = {
    "config.json",
    "vocabulary.json",
    "arithmetic.json",
    "journal.sqlite",
    "checkpoints",
    "metrics.jsonl",
    "weights.safetensors",
    "loss.png",
}


TIMES = {"seconds", "ms_per_step", "peak_rss_mb", "validation_share"}
"""What differs between two runs of the same flags."""


def metrics_of(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_times(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in metrics_of(folder)]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "weights.safetensors")


def files_of(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
