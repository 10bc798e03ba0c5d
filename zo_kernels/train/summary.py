"""What a run says about itself before its first and after its last step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ..models import LanguageModel
from ..run.folder import Metrics
from .build import Run
from .config import TrainConfig


def print_header(console: Console, run: Run, backend: str, processes: int = 1) -> None:
    """Says what is going to be trained, on what, and how."""
    config, task = run.config, run.task
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    references = ", ".join(f"{name} {loss:.3f}" for name, loss in task.reference_losses.items())
    heads = "1 head" if config.num_heads == 1 else f"{config.num_heads} heads"
    num_threads = torch.get_num_threads()
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    where = (
        f"{config.device} ({threads})"
        if processes == 1
        else f"{processes} processes of {config.device} ({threads} each)"
    )
    lr = f"lr {config.lr:g} falling to {config.lr * config.lr_decay:g}"
    for line in (
        f"task    {config.task}: {task.vocab_size} different tokens; losses in nats per token ({references})",
        f"model   {type(run.model).__name__} of {parameters:,} parameters: embedding {config.embed_dim}, "
        f"hidden size {config.hidden_size}, {heads}",
        f"step    {_step(config)} on a batch of {config.batch_size}, {lr}",
        f"run     {config.steps} steps, seed {config.seed}, on {where}, backend {backend}",
    ):
        console.print(line)


def title(config: TrainConfig, model: LanguageModel) -> str:
    """Of the picture of a run."""
    estimator = "CD-RGE" if config.estimator == "cd" else config.estimator
    how = f"BPTT with {config.optimizer}" if config.solver == "bptt" else f"{estimator} with {config.probes} probes"
    return f"{config.task}: {type(model).__name__}, hidden size {config.hidden_size}, {how}"


def _step(config: TrainConfig) -> str:
    if config.solver == "bptt":
        return f"back-propagation, {config.optimizer},"
    kind = "" if config.distribution == "rademacher" else f"{config.distribution} "
    parts = [f"{config.probes} {kind}probes"]
    if config.estimator != "cd":
        parts.append(config.estimator)
    parts += [part for part in (config.transforms, config.dense) if part]
    return f"{', '.join(parts)} (eps {config.eps:g})"


def print_summary(console: Console, run: Run, metrics: Sequence[Metrics]) -> None:
    """Prints losses and accuracies at the start and at the end, the time, and the probes left out."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("", "first loss", "last loss", "first accuracy", "last accuracy"):
        table.add_column(heading, justify="right" if heading else "left")
    names = dict.fromkeys(key[: -len("_loss")] for line in metrics for key in line if key.endswith("_loss"))
    for name in sorted(names, key=lambda name: name != "train"):  # training first, the others as they came
        losses, accuracies = _values(metrics, f"{name}_loss"), _values(metrics, f"{name}_accuracy")
        table.add_row(name, *_ends(losses, "{:.3f}"), *_ends(accuracies, "{:.1%}"))
    console.print()
    console.print(table)
    console.print()
    seconds = _values(metrics, "seconds")
    if not seconds:
        return
    taken = len(seconds)
    if run.config.solver == "bptt":
        console.print(f"{taken:,} steps in {seconds[-1]:.1f} s, {taken / seconds[-1]:,.1f} steps/s")
        return
    probes = taken * run.config.probes
    skipped = sum(_values(metrics, "skipped_probes"))
    console.print(
        f"{taken:,} steps in {seconds[-1]:.1f} s, {probes / seconds[-1]:,.0f} probes/s; "
        f"{skipped:,} of {probes:,} probes left out (loss not finite)"
    )


def _values(metrics: Sequence[Metrics], name: str) -> list[float]:
    return [value for line in metrics if (value := line.get(name)) is not None]


def _ends(values: Sequence[float], form: str) -> tuple[str, str]:
    """The first and the last value; what was measured once was measured last."""
    first, last = values[:1] if len(values) > 1 else [], values[-1:]
    return "".join(map(form.format, first)), "".join(map(form.format, last))
