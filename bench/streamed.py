"""`python -m bench.streamed`: memory, time and slopes of mode="streamed" on a bfloat16 Llama; 5 minutes, transformers.

The memory of a step beyond the model and a plain forward pass, in a fresh process each. The time of a step with a loss
that costs nothing, over a loop as MeZO's authors describe it: normal numbers drawn anew by a reset generator, added to
the parameters in place three times and in the update once more. The time with a forward pass. How loss differences
correlate with those in float64, and what training comes to beside shadow copies.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import zo_kernels as zo
from bench.report import RESULTS, machine, shown, table, write
from zo_kernels.philox import probe_seeds

LR, EPS = 1e-9, 2**-7
LARGE = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "layers": 12, "heads": 12}
SMALL = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "layers": 2, "heads": 4}


def llama(vocab_size: int, hidden_size: int, intermediate_size: int, layers: int, heads: int) -> nn.Module:
    """With tied embeddings and random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        tie_word_embeddings=True,
        use_cache=False,
    )
    model: nn.Module = LlamaForCausalLM(config)
    return model.to(torch.bfloat16).eval()


def loss_of(model: nn.Module, tokens: Tensor) -> Callable[[], Tensor]:
    """The loss of the next tokens, from logits in the model's dtype."""

    def loss() -> Tensor:
        logits = model(input_ids=tokens).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), tokens[:, 1:].flatten())

    return loss


def peak() -> int:
    """The most memory that this process had since `reset_peak`, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) * 1024


def reset_peak() -> None:
    """Linux lets a process set its high-water mark back to what it has now."""
    Path("/proc/self/clear_refs").write_text("5")


@torch.no_grad()
def measure_memory(mode: str) -> None:
    """Prints the peak of a second step beyond that of a second forward pass, in bytes."""
    model = llama(**LARGE)
    loss = loss_of(model, torch.zeros(1, 8, dtype=torch.int64))
    peaks = []
    optimizer = zo.optim.CDRGE(model, lr=LR, eps=EPS, probes=1, mode=mode, check_every=0)
    for act in (loss, lambda: optimizer.step(loss)):
        act()
        reset_peak()
        act()
        peaks.append(peak())
    print(peaks[1] - peaks[0])


def memory(mode: str) -> int:
    """What `measure_memory` finds in a fresh process, in which freed memory does not stay with the allocator."""
    command = [sys.executable, "-m", "bench.streamed", "--memory-of", mode]
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=variables).stdout
    return int(output.splitlines()[-1])


def mezo_step(model: nn.Module, loss: Callable[[], float], generator: torch.Generator, step: int) -> None:
    """MeZO: theta + eps z, theta - eps z, theta again, and an update along z, which is drawn anew each time."""

    def add(scale: float) -> None:
        generator.manual_seed(step)
        for p in model.parameters():
            z = torch.normal(0.0, 1.0, size=p.shape, dtype=p.dtype, device=p.device, generator=generator)
            p.data.add_(z, alpha=scale)

    add(EPS)
    plus = float(loss())
    add(-2 * EPS)
    minus = float(loss())
    add(EPS)
    add(-LR * (plus - minus) / (2 * EPS))


def step_of(optimizer: zo.optim.CDRGE, loss: Callable[[], Any], _: int) -> None:
    """A step of the optimizer."""
    optimizer.step(loss)


@torch.no_grad()
def compare_times(name: str, loss_from: Callable[[nn.Module], Callable[[], Any]], rounds: int) -> list[dict[str, Any]]:
    """Steps of the two modes over MeZO's, in turns."""
    models = [llama(**LARGE) for _ in range(3)]
    losses = [loss_from(model) for model in models]
    ways: list[Callable[[int], object]] = []
    for model, loss, mode in zip(models, losses, ("streamed", "shadow"), strict=False):
        optimizer = zo.optim.CDRGE(model, lr=LR, eps=EPS, probes=1, mode=mode, check_every=0)
        ways.append(partial(step_of, optimizer, loss))
    generator = torch.Generator()
    ways.append(lambda step: mezo_step(models[2], losses[2], generator, step))
    taken: list[list[float]] = [[], [], []]
    for round_ in range(rounds + 1):
        for number in sorted(range(3), reverse=round_ % 2 == 1):
            started = time.perf_counter()
            ways[number](round_)
            if round_:  # the first warms up
                taken[number].append((time.perf_counter() - started) * 1e3)
    return [
        {
            "name": f"{mode}: {name}",
            "figure": median(m / t for t, m in zip(times, taken[2], strict=True)),
            "unit": "x faster than MeZO's loop",
            "ours_ms": median(times),
            "rival_ms": median(taken[2]),
        }
        for mode, times in zip(("streamed", "shadow"), taken, strict=False)
    ]


def free_loss(model: nn.Module) -> Callable[[], Any]:
    """Depends on one element."""
    return lambda: model.model.norm.weight[0].float()  # type: ignore[union-attr, index]


@torch.no_grad()
def correlation(mode: str, eps: float, probes: int) -> float:
    """Of loss differences with those of a float64 model at the same theta."""
    tokens = torch.randint(512, (8, 32), generator=torch.Generator().manual_seed(1))
    model = llama(**SMALL)
    optimizer = zo.optim.CDRGE(model, lr=LR, eps=eps, probes=probes, mode=mode, check_every=0)
    found = optimizer.estimate(loss_of(model, tokens)).losses
    wide = llama(**SMALL).double()
    exact = zo.optim.CDRGE(wide, lr=LR, eps=eps, probes=probes, mode="shadow", check_every=0)
    right = exact.estimate(loss_of(wide, tokens)).losses
    differences = torch.stack([losses[:, 0] - losses[:, 1] for losses in (found, right)])
    return float(torch.corrcoef(differences)[0, 1])


@torch.no_grad()
def mezo_correlation(eps: float, probes: int) -> float:
    """The same for theta + eps z - 2 eps z in the parameters themselves, with the probes of the others."""
    tokens = torch.randint(512, (8, 32), generator=torch.Generator().manual_seed(1))
    model, wide = llama(**SMALL), llama(**SMALL).double()
    exact = zo.optim.CDRGE(wide, lr=LR, eps=eps, probes=probes, mode="shadow", check_every=0)
    right = exact.estimate(loss_of(wide, tokens)).losses
    loss, found = loss_of(model, tokens), []
    offsets = zo.params.flat_offsets(model)
    for seed in probe_seeds(0, 0, probes).tolist():
        kept = [p.clone() for p in model.parameters()]
        pair = []
        for alpha in (eps, -2 * eps):
            for p in model.parameters():
                zo.ops.apply_probe_(p.data, alpha, seed, offset=offsets[p])
            pair.append(float(loss()))
        found.append(pair[0] - pair[1])
        for p, before in zip(model.parameters(), kept, strict=True):
            p.copy_(before)
    return float(torch.corrcoef(torch.stack([torch.tensor(found).double(), right[:, 0] - right[:, 1]]))[0, 1])


@torch.no_grad()
def trained(mode: str, lr: float, steps: int) -> float:
    """Loss of a small model after training it to repeat one batch of tokens."""
    tokens = torch.randint(64, (8, 32), generator=torch.Generator().manual_seed(1))
    model = llama(**SMALL)
    loss = loss_of(model, tokens)
    optimizer = zo.optim.CDRGE(model, lr=lr, eps=EPS, probes=8, mode=mode, check_every=0)
    for _ in range(steps):
        optimizer.step(loss)
    return float(loss())


def measure(rounds: int, steps: int) -> list[dict[str, Any]]:
    """All figures."""
    parameters = [p.numel() for p in llama(**LARGE).parameters()]
    largest, bytes_of_all = 2 * max(parameters), 2 * sum(parameters)
    figures: list[dict[str, Any]] = [{"name": "parameters", "figure": sum(parameters) / 1e6, "unit": "million"}]
    for mode in ("streamed", "shadow"):
        name = f"{mode}: memory of a step beyond a forward pass"
        found = memory(mode)
        bar = {"at_most": 1.05} if mode == "streamed" else {}
        figures.append({"name": name, "figure": found / largest, "unit": "x the largest tensor", **bar})
        figures.append({"name": f"{name}, over the model", "figure": found / bytes_of_all, "unit": "x the model"})
    times = compare_times("step with a free loss", free_loss, rounds)
    times[0]["at_least"] = 3.0
    tokens = torch.zeros(4, 64, dtype=torch.int64)
    figures += [*times, *compare_times("step with 4 x 64 tokens", lambda m: loss_of(m, tokens), max(rounds // 3, 2))]
    for eps, name in ((1e-3, "0.001"), (2**-7, "2^-7")):
        for mode in ("streamed", "shadow"):
            figures.append({"name": f"{mode}: correlation of slopes, eps {name}", "figure": correlation(mode, eps, 48)})
        figures.append({"name": f"in place as MeZO: same, eps {name}", "figure": mezo_correlation(eps, 48)})
    for lr in (1e-4, 1e-3):
        for mode in ("streamed", "shadow"):
            name = f"{mode}: loss after {steps} steps, lr {lr:g}"
            figures.append({"name": name, "figure": trained(mode, lr, steps), "unit": "nats"})
    return figures


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--memory-of", help="print the bytes of one mode, for the script itself")
    arguments = parser.parse_args()
    if arguments.memory_of:
        return measure_memory(arguments.memory_of)
    figures = measure(arguments.rounds, arguments.steps)
    print(table(figures))
    path = RESULTS / "streamed.json"
    write(path, {"command": "python -m bench.streamed", "machine": machine(), "figures": figures})
    print(f"written to {shown(path)}")


if __name__ == "__main__":
    main()
