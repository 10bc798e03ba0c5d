"""`python -m bench.module`: populations of any module over probe by probe through a closure; 8 minutes.

A step of an optimizer with `zo.ModulePopulation` against one with a closure, in turns, in CPU time on one thread and in
real time on two. The limit is what a step with
the closure takes over its float32 products alone, at the speed of a large product: no way of evaluating the same losses
in float32 can be more times as fast. Transformers need `pip install transformers peft`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zo_kernels as zo
from bench.parameters import in_turns
from bench.report import RESULTS, machine, shown, table, write

SIDE = 1024
"""Size of the large product."""


@dataclass
class Case:
    """What is trained. loss_fn: of a model and a batch. at_least: the bar, or None."""

    name: str
    model: nn.Module
    loss_fn: Callable[[nn.Module, Any], Tensor]
    batch: Any
    probes: int
    at_least: float | None = None


def mlp(sizes: list[int], rows: int, probes: int, at_least: float | None = None) -> Case:
    """Layers of these sizes and a cross-entropy."""
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    model = nn.Sequential(*layers[:-1])
    batch = torch.randn(rows, sizes[0]), torch.randint(sizes[-1], (rows,))
    name = f"MLP, {count(model)} parameters, batch {rows}"
    return Case(name, model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), batch, probes, at_least)


def llama(
    width: int,
    layers: int,
    vocab: int,
    batch: tuple[int, int],
    probes: int,
    at_least: float | None = None,
    rank: int = 0,
) -> Case:
    """A Llama with random weights. rank: of the adapters of LoRA, which then are trained alone."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": vocab, "hidden_size": width, "intermediate_size": 11 * width // 4}
    sizes |= {"num_hidden_layers": layers, "num_attention_heads": width // 32}
    config = LlamaConfig(**sizes, tie_word_embeddings=True)
    model: nn.Module = LlamaForCausalLM(config)
    name = f"transformer, {count(model)} parameters, batch {batch[0]} x {batch[1]}"
    if rank:
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model, name = get_peft_model(model, lora), f"LoRA of rank {rank} on a {name}"
    tokens = torch.randint(vocab, batch)
    return Case(name, model.eval(), lambda m, b: m(input_ids=b, labels=b).loss, tokens, probes, at_least)


def count(model: nn.Module) -> str:
    """The number of parameters, rounded."""
    number = sum(p.numel() for p in model.parameters())
    return f"{number / 1e6:.1f}M" if number > 5e5 else f"{number / 1e3:.0f}k"


def measure(case: Case, rounds: int, threads: int) -> list[dict[str, Any]]:
    """Times as fast as the closure, and the limit."""
    torch.set_num_threads(threads)
    opt = zo.optim.CDRGE(case.model, lr=2**-12, eps=2**-10, probes=case.probes, check_every=0)
    population = zo.ModulePopulation(case.model, case.loss_fn)
    x = torch.randn(SIDE, SIDE)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        case.loss_fn(case.model, case.batch)
    products = 2 * case.probes * counter.get_total_flops() / (2 * SIDE**3)  # in large products
    ours, rival, large = in_turns(
        [
            lambda: opt.step(population.on(case.batch)),
            lambda: opt.step(lambda: case.loss_fn(case.model, case.batch)),
            lambda: x @ x,
        ],
        rounds,
        repeats=1,
        clock=time.process_time if threads == 1 else time.perf_counter,
    )
    name = f"{case.name}, {case.probes} probes, {threads} thread{'s' * (threads > 1)}"
    ratio = median(b / a for a, b in zip(ours, rival, strict=True))
    limit = median(b / (products * c) for b, c in zip(rival, large, strict=True))
    bar = {} if case.at_least is None else {"at_least": case.at_least}
    figure = {"name": name, "figure": ratio, "unit": "x", **bar, "ours_ms": median(ours), "rival_ms": median(rival)}
    return [figure, {"name": f"{name}: limit", "figure": limit, "unit": "x"}]


def main() -> None:
    """Measures, prints and writes the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="of the slowest case; three times as many of the others")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    cases = [
        mlp([8, 24, 24, 4], 32, 64),
        mlp([32, 64, 64, 10], 8, 64),
        mlp([128, 256, 256, 10], 32, 64, at_least=5),
        llama(64, 2, 128, (1, 16), 96),
        llama(64, 2, 128, (8, 32), 96),
        llama(128, 4, 1024, (8, 32), 32, at_least=2),
        llama(320, 7, 4096, (1, 32), 32, rank=8),
        llama(320, 7, 4096, (8, 32), 32, at_least=2, rank=8),
    ]
    figures = []
    for threads in (1, 2):
        for case in cases:
            rounds = arguments.rounds * (1 if case is cases[-1] else 3)
            figures += measure(case, rounds, threads)
            print(table(figures[-2:]).splitlines()[2], flush=True)
    print(table(figures))
    path = RESULTS / "module.json"
    write(path, {"command": "python -m bench.module", "machine": machine(), "figures": figures})
    print(f"written to {shown(path)}")


if __name__ == "__main__":
    main()
