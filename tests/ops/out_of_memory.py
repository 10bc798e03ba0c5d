"""A program: evaluates populations on two threads with less and less address space. Prints how many ended how.

    python out_of_memory.py TRIALS

Each call must return the nats that it returns with memory enough, or raise MemoryError and leave the states as they
were.
"""

from __future__ import annotations

import random
import resource
import sys
from pathlib import Path

import torch

import zo_kernels as zo
from tests.recurrent import Shape, copies, make_batch, make_model, make_seeds, make_states

_PAGE = resource.getpagesize()
_SHAPES = [Shape(30, 32, 4, 32, 64, 12), Shape(11, 8, 1, 200, 1, 300), Shape(300, 16, 2, 24, 700, 3)]


def address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE


def main(trials: int) -> None:
    torch.set_num_threads(2)
    generator = random.Random(trials)
    ends = {"done": 0, "MemoryError": 0}
    for trial in range(trials):
        shape, probes = _SHAPES[trial % len(_SHAPES)], (1, 8)[trial % 2]
        model = make_model("lstm", shape)
        weights = model._weights()
        tokens, targets = make_batch(shape)
        seeds, states = make_seeds(probes), make_states(model, probes, shape.batch)
        before = copies(states)
        expected = zo.ops.recurrent_nats(weights, tokens, targets, seeds, 0.1, copies(states))
        room = generator.randrange(1 << generator.randrange(12, 26))
        resource.setrlimit(resource.RLIMIT_AS, (address_space() + room, resource.RLIM_INFINITY))
        try:
            nats = zo.ops.recurrent_nats(weights, tokens, targets, seeds, 0.1, states)
        except MemoryError:
            ends["MemoryError"] += 1
            assert all(torch.equal(a, b) for a, b in zip(states, before, strict=True))
        else:
            ends["done"] += 1
            assert torch.equal(nats, expected)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print("; ".join(f"{count} {end}" for end, count in ends.items()))


if __name__ == "__main__":
    main(int(sys.argv[1]))
