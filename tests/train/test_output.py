"""What a run shows: the live bar, the lines, the summary and the plot."""

import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from zo_kernels.interrupts import InterruptGate
from zo_kernels.plot.losses import plot_losses
from zo_kernels.run.folder import Metrics
from zo_kernels.train.build import build
from zo_kernels.train.defaults import DEFAULTS, default_config
from zo_kernels.train.reporter import Reporter
from zo_kernels.train.summary import print_header, print_summary

METRICS: list[Metrics] = [
    {"step": 0, "validation_loss": 2.0, "validation_accuracy": 0.25},
    {"step": 1, "train_loss": 1.9, "skipped_probes": 2, "seconds": 0.5},
    {"step": 2, "train_loss": None, "skipped_probes": 1, "seconds": 1.0, "validation_loss": 1.5, "test_loss": 1.75}
    | {"validation_exact_accuracy": 0.125, "peak_rss_mb": 311.6, "peak_vram_mb": 10.0},
]


def reported(*, terminal: bool) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, highlight=False, width=100)
    with Reporter(console, steps=20, start=4, probes=10_000) as reporter:
        reporter.step(10, 1.25)
        reporter.validation(10, {"validation": (1.5, 0.75), "validation_exact": (math.nan, 0.5)})
    return stream.getvalue()


def test_terminal_has_a_bar_with_loss_rate_and_eta() -> None:
    shown = reported(terminal=True)
    for part in (
        "10/20",
        "loss 1.250",
        " probes/s",
        "ETA",
        "10/20  train 1.250  validation 1.500 (75% right, 50% exact)",
    ):
        assert part in shown
    assert "\x1b" in shown


def test_elsewhere_there_are_plain_lines() -> None:
    lines = reported(terminal=False).split("\n")
    assert [line for line in lines[1:] if line] == []
    assert "\x1b" not in lines[0]
    for part in ("10/20  train 1.250  validation 1.500 (75% right, 50% exact)", " probes/s", "ETA"):
        assert part in lines[0]


def test_header_and_summary_say_what_was_done() -> None:
    stream = io.StringIO()
    console = Console(file=stream, highlight=False, width=100)
    run = build(DEFAULTS["copy"], InterruptGate())
    print_header(console, run, "cpu")
    print_summary(console, run, METRICS, 0.25)
    shown = " ".join(stream.getvalue().split())
    parameters = sum(parameter.numel() for parameter in run.model.parameters())
    for part in (
        f"{parameters:,} parameters",
        f"chance {math.log(4):.3f}",
        "train 1.900",  # measured once: the second was not finite
        "validation 2.000 1.500 25.0%",
        "test 1.750",
        "validation, exact 12.5%",
        "2 steps in 1.0 s: 500 ms per step, 192 probes/s; 3 of 192 probes left out (loss not finite); 25% of the time "
        "validating, at most 312 MB of memory, at most 10 MB of GPU memory",
    ):
        assert part in shown


@pytest.mark.parametrize(
    ("credit_length", "step"),
    [
        (1, "local gradient, adamw, on a batch"),
        (2, "activity perturbation with 3 probes, local gradient, credit length 2 (eps 0.1), adamw, on a batch"),
    ],
)
def test_the_header_has_eps_where_something_is_perturbed(credit_length: int, step: str) -> None:
    stream = io.StringIO()
    config = replace(
        DEFAULTS["copy"], solver="activity", local_gradient=True, credit_length=credit_length, probes=3, eps=0.1
    )
    print_header(Console(file=stream, highlight=False, width=200), build(config, InterruptGate()), "cpu")
    assert step in " ".join(stream.getvalue().split())


@pytest.mark.parametrize(
    ("processes", "reason", "where"),
    [
        (1, "", "on cpu (3 threads), backend cpu"),
        (1, "no CUDA device", "on cpu (3 threads; no CUDA device), backend cpu"),
        (4, "2 GPUs for 4 processes", "on 4 processes of cpu (3 threads each; 2 GPUs for 4 processes), backend cpu"),
    ],
)
def test_header_says_where_the_run_is_and_why(processes: int, reason: str, where: str) -> None:
    stream = io.StringIO()
    torch.set_num_threads(3)
    run = build(default_config(device="cpu"), InterruptGate())
    print_header(Console(file=stream, highlight=False, width=200), run, "cpu", processes, reason)
    assert stream.getvalue().splitlines()[3] == f"run     800 steps, seed 0, {where}"


def test_header_of_a_constant_learning_rate() -> None:
    stream = io.StringIO()
    run = build(default_config(device="cpu", lr_decay=1.0), InterruptGate())
    print_header(Console(file=stream, highlight=False, width=200), run, "cpu")
    assert stream.getvalue().splitlines()[2] == "step    96 probes (eps 0.03) on a batch of 64, lr 0.3"


def test_summary_of_a_run_without_a_step() -> None:
    stream = io.StringIO()
    print_summary(Console(file=stream), build(DEFAULTS["copy"], InterruptGate()), METRICS[:1])
    assert "validation" in stream.getvalue()
    assert "steps in" not in stream.getvalue()


def test_plot_shows_every_curve_and_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (figures.append(self), save(self, *args, **kw)))
    plot_losses(tmp_path / "loss.png", METRICS, "a title", {"chance": 1.386})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figures[0].axes
    curves = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[:2]}
    assert curves == {"train (mean over the probes)": ([1], [1.9]), "validation": ([0, 2], [2.0, 1.5])}
    assert [text.get_text() for text in axes.texts] == ["chance 1.39"]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("a title", "step", "loss (nats per token)")


@pytest.mark.filterwarnings("error")
def test_plot_of_a_run_without_any_metrics(tmp_path: Path) -> None:
    plot_losses(tmp_path / "loss.png", [], "a title", {"chance": 1.386})
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
