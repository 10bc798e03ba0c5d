"""Who evaluates what: a spy on the cells of a step, which are its pairs of a probe and a micro-batch."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import numpy as np
from torch import Tensor

from zo_kernels.models.language import ModelPopulation
from zo_kernels.philox import probe_seeds


@contextmanager
def spy_on_cells() -> Iterator[list[tuple[int, int]]]:
    """Fills a list with the cells that populations evaluate in this process: (seed of the probe, micro-batch)."""
    cells: list[tuple[int, int]] = []
    original = ModelPopulation.part_nats

    def record(self: ModelPopulation, part: int, seeds: Tensor, eps: float) -> Tensor:
        cells.extend((seed, part) for seed in seeds.tolist())
        return original(self, part, seeds, eps)

    with mock.patch.object(ModelPopulation, "part_nats", record):
        yield cells


def cells_of_step(cells: Iterable[Iterable[int]], run_seed: int, step: int, probes: int) -> list[tuple[int, int]]:
    """Picks the cells of one step, in order, as (index of the probe, micro-batch)."""
    index = {seed: i for i, seed in enumerate(probe_seeds(run_seed, step, probes).tolist())}
    return [(index[seed], part) for seed, part in cells if seed in index]


def expected_cells(split: str, ranks: int, probes: int, parts: int) -> list[set[tuple[int, int]]]:
    """The cells of each rank that does its even share: of probes, or of cells walked along micro-batches or probes."""
    if split == "probes":
        return [{(i, part) for i in mine for part in range(parts)} for mine in np.array_split(range(probes), ranks)]
    by_probe = [(i, part) for i in range(probes) for part in range(parts)]
    by_part = [(i, part) for part in range(parts) for i in range(probes)]
    cells = np.array(by_part if split == "batch" else by_probe)
    return [set(map(tuple, mine.tolist())) for mine in np.array_split(cells, ranks)]
