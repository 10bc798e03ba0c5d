"""More than 2^31 elements: indices, sizes and tile numbers that no longer fit 32 bits."""

from pathlib import Path

import pytest
import torch

import zo_kernels as zo
from tests.cases import assert_same_bits

NUMEL = 2**31 + 1000
OFFSET = 2**39 - 2**31 - 384  # the high half of the block index changes at element 2^31 + 384
WINDOW = 5000


def available_memory():
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="free memory is not known")
def test_more_than_2_31_elements():
    if available_memory() < 8 * 2**30:
        pytest.skip("needs 8 GB of free memory")
    x = torch.zeros(NUMEL, dtype=torch.bfloat16)
    with zo.backend("cpu"):
        zo.ops.apply_probe_(x, 0.5, 3, offset=OFFSET)
        zo.ops.accumulate_probes_(x, [0.125], [7], offset=OFFSET, decay=0.5)
    for start in (0, 2**30 - 2048, 2**31 - 2048, 2**31 + 256, NUMEL - 128):
        start -= start % 128
        part = x[start : start + WINDOW]
        with zo.backend("reference"):
            expected = torch.zeros(len(part), dtype=torch.bfloat16)
            zo.ops.apply_probe_(expected, 0.5, 3, offset=OFFSET + start)
            zo.ops.accumulate_probes_(expected, [0.125], [7], offset=OFFSET + start, decay=0.5)
        assert_same_bits(part, expected, f"from {start}")
    # Written once, everywhere: (0 +- 0.5) * 0.5 +- 0.125. The stride is prime, so no tile or part of one is left out.
    sizes = x[::1021].abs()
    inner, outer = int((sizes == 0.125).sum()), int((sizes == 0.375).sum())
    assert inner + outer == len(sizes)
    assert abs(inner - outer) < 5 * len(sizes) ** 0.5
