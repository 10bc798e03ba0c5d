"""What a run prints before its first step and after its last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from ..models import LanguageModel
from ..run.best import Best
from ..run.metrics import EXACT, MEMORY, Metrics
from .build import Run
from .config import TrainConfig, activity_probes
from .forward import describe_forward


def print_header(console: Console, run: Run, backend: str, processes: int = 1, device_reason: str = "") -> None:
    """Prints what is going to be trained, on what, and how.

    device_reason: why the device was chosen, if it was not asked for.
    """
    config, task = run.config, run.task
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    references = ", ".join(f"{name} {loss:.3f}" for name, loss in task.reference_losses.items())
    threads = _count(torch.get_num_threads(), "thread")
    if processes > 1:
        where, threads = f"{processes} processes of {run.device.type}", f"{threads} each"
    else:
        where = run.device.type
    details = f"{threads}; {device_reason}" if device_reason else threads
    kind = "" if config.tokenizer is None else f" ({config.tokenizer})"
    for line in (
        f"task    {config.task}: {task.describe(kind)} ({references})",
        f"model   {type(run.model).__name__} of {parameters:,} parameters: embedding {config.embed_dim}, "
        + _layers(config),
        f"step    {_step(config)} on a batch of {config.batch_size}, {_learning_rate(config)}",
        f"run     {_count(config.steps, 'step')}, seed {config.seed}, on {where} ({details}), backend {backend}",
        f"forward {describe_forward(config, run.model)}",
    ):
        console.print(line)


def _layers(config: TrainConfig) -> str:
    words = [f"hidden size {config.hidden_size}", _count(config.num_heads, "head")]
    if config.num_layers > 1:
        words.insert(0, _count(config.num_layers, "layer"))
    words += ["layer norm"] * config.layer_norm + ["residual connections"] * config.residual
    return ", ".join(words)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def _learning_rate(config: TrainConfig) -> str:
    return f"lr {config.lr:g}" + (f" falling to {config.lr * config.lr_decay:g}" if config.lr_decay < 1 else "")


def title(config: TrainConfig, model: LanguageModel) -> str:
    """Returns the title of a run's picture."""
    if config.solver == "bptt":
        how = f"BPTT with {config.optimizer}"
    elif config.solver == "activity":
        how = f"{_activity(config)}, {config.optimizer}"
    else:
        how = f"{'CD-RGE' if config.estimator == 'cd' else config.estimator} with {config.probes} probes"
    return f"{config.task}: {type(model).__name__}, hidden size {config.hidden_size}, {how}"


def _activity(config: TrainConfig) -> str:
    """What of the gradient is estimated by perturbing activities, and what is not."""
    if not activity_probes(config):
        return "local gradient"
    parts = ["activity perturbation with " + _count(config.probes, "probe")]
    parts += ["local gradient"] * config.local_gradient
    if config.credit_length is not None:
        parts.append(f"credit length {config.credit_length}")
    return ", ".join(parts)


def _step(config: TrainConfig) -> str:
    if config.solver == "bptt":
        return f"back-propagation, {config.optimizer},"
    if config.solver == "activity":
        eps = f" (eps {config.eps:g})" if activity_probes(config) else ""
        return f"{_activity(config)}{eps}, {config.optimizer},"
    kind = "" if config.distribution == "rademacher" else f"{config.distribution} "
    parts = [f"{config.probes} {kind}probes"]
    if config.estimator != "cd":
        parts.append(config.estimator)
    parts += [part for part in (config.transforms, config.dense) if part]
    return f"{', '.join(parts)} (eps {config.eps:g})"


def print_summary(console: Console, run: Run, metrics: Sequence[Metrics], validating: float = 0.0) -> None:
    """Prints the first and last losses and accuracies, the time and memory, and the number of probes left out.

    validating: share of this process's time that went into validations, from 0 to 1.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    of_loss = not run.task.has_accuracy
    others = ("first", "last") if of_loss else ("first accuracy", "last accuracy")
    for heading in ("", "first loss", "last loss", *others):
        table.add_column(heading, justify="right" if heading else "left")
    scores = ("_loss", "_accuracy")
    names = dict.fromkeys(key.rpartition("_")[0] for line in metrics for key in line if key.endswith(scores))
    for name in sorted(names, key=lambda name: name != "train"):  # training first
        losses, accuracies = _values(metrics, f"{name}_loss"), _values(metrics, f"{name}_accuracy")
        shown = f"{name.removesuffix(EXACT)}, exact" if name.endswith(EXACT) and not losses else name
        second = [run.task.in_words(loss, 0) for loss in losses] if of_loss else [f"{x:.1%}" for x in accuracies]
        table.add_row(shown, *_ends([f"{loss:.3f}" for loss in losses]), *_ends(second))
    console.print()
    console.print(table)
    console.print()
    seconds = _values(metrics, "seconds")
    if not seconds:
        return
    taken, total = len(seconds), seconds[-1]
    parts = [f"{1e3 * total / taken:.3g} ms per step"]
    left_out = ""
    if run.config.solver == "zo":
        probes, skipped = taken * run.config.probes, sum(_values(metrics, "skipped_probes"))
        parts.append(f"{probes / total:,.0f} probes/s")
        left_out = f"; {skipped:,} of {probes:,} probes left out (loss not finite)"
    sizes = zip(("memory", "GPU memory"), (_values(metrics, name) for name in MEMORY), strict=True)
    memory = "".join(f", at most {max(found):,.0f} MB of {kind}" for kind, found in sizes if found)
    console.print(
        f"{_count(taken, 'step')} in {total:.1f} s: {', '.join(parts)}{left_out}; "
        f"{validating:.0%} of the time validating{memory}"
    )


def print_best(console: Console, run: Run, name: str, best: Best, stopped_early: bool) -> None:
    """Prints the step with the lowest loss of the set `name`, and that the run ended early because of it."""
    kept = "" if run.config.keep is None else ", kept as a checkpoint"
    console.print(f"lowest {name} loss {best.loss:.3f} after step {best.step:,}{kept}")
    if stopped_early:
        since = _count(best.since, "validation")
        console.print(f"stopped early, before step {run.config.steps:,}: {since} without a lower loss")


def _values(metrics: Sequence[Metrics], name: str) -> list[float]:
    return [value for line in metrics if (value := line.get(name)) is not None]


def _ends(values: Sequence[str]) -> tuple[str, str]:
    """The first and the last value, as far as there are any. A single value is the last one."""
    first, last = values[:1] if len(values) > 1 else [], values[-1:]
    return "".join(first), "".join(last)
