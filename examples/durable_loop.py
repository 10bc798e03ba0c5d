"""A training loop that may be killed at any moment: start it again, and it ends with the same bits.

    python examples/durable_loop.py --out runs/circle                  # kill -9 it, and start it again
    python -m zo_kernels.plot runs/circle --set train validation --out circle.png
    PYTHONPATH=examples python -m zo_kernels.replay runs/circle --step 123 --allow-import --out weights123.safetensors

A small network learns which points of the plane lie in a circle. What makes the loop durable is `zo.durable.run` around
it, and `run.steps` in place of `range`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import zo_kernels as zo


def build() -> tuple[nn.Module, zo.optim.ZeroOrder]:
    """The model and its optimizer, as `zo_kernels.replay` needs them too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))
    return model, zo.optim.ZeroOrder(model.parameters(), lr=0.2, eps=2**-7, probes=16)


def points(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points [N, 2] in a square, and whether each lies in the circle [N, 1]."""
    x = 2 * torch.rand(count, 2, generator=generator) - 1
    return x, (x.square().sum(1, keepdim=True) < 0.6).float()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="runs/circle", help="folder of the run (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="updates (default: %(default)s)")
    config = parser.parse_args(arguments)

    model, opt = build()
    scheduler = torch.optim.lr_scheduler.LinearLR(opt, start_factor=1.0, end_factor=0.1, total_iters=1000)
    batches = torch.Generator().manual_seed(1)
    held_out = points(1000, torch.Generator().manual_seed(2))

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(model(x), y)

    with zo.durable.run(config.out, model, opt, build=build, scheduler=scheduler, batches=batches) as run:
        print("a new run" if run.resumed_from is None else f"goes on from step {run.resumed_from}", flush=True)
        for step in run.steps(config.steps):
            batch = points(64, batches)  # not in the loss: a step is taken again without it
            opt.step(lambda batch=batch: loss(*batch))
            scheduler.step()
            if (step + 1) % 100 == 0:
                x, y = held_out
                accuracy = ((model(x) > 0) == (y > 0)).float().mean().item()
                run.scores({"validation": (loss(x, y).item(), accuracy)})
                print(f"step {step + 1:4d}  accuracy {accuracy:.1%}", flush=True)


if __name__ == "__main__":
    main()
