"""Chunks and segments: never beyond memory or flashrnn's offsets, as large as these allow, and few sizes in all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zo_kernels.backends.base import RecurrentWeights
from zo_kernels.backends.recurrent.memory import CPU_BYTES
from zo_kernels.models.flashrnn.call import MAX_ELEMENTS, MAX_HEADS, elements
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.plan import Plan, Work, make_plan, segment_length, split_batch

works = st.builds(
    Work,
    cell=st.sampled_from(list(CELLS)),
    heads=st.integers(1, 64),
    head_dim=st.integers(1, 1024),
    batch_size=st.integers(1, 2048),
    steps=st.integers(1, 10**6),
    probe_bytes=st.integers(1, 1 << 32),
    step_bytes=st.integers(1, 1 << 28),
)


def fits_flashrnn(work: Work, probes: int, steps: int) -> bool:
    heads = 2 * probes * work.heads
    return heads <= MAX_HEADS and elements(work.cell, steps, work.batch_size, heads, work.head_dim) <= MAX_ELEMENTS


@given(works, st.integers(1, 1000), st.integers(0, 1 << 38))
def test_plans_stay_within_bounds_and_use_them(work: Work, probes: int, budget: int) -> None:
    plan = make_plan(work, probes, budget)
    assert 1 <= plan.probes <= probes
    assert 1 <= plan.steps <= work.steps
    assert fits_flashrnn(work, plan.probes, plan.steps)
    size = plan.probes * (work.probe_bytes + plan.steps * work.step_bytes)
    together = min(work.steps, 64)
    if work.fits(1, together, budget):
        assert size <= budget
        assert plan.steps >= together
        fewest = next(n for n in range(1, probes + 1) if work.fits(-(-probes // n), together, budget))
        assert -(-probes // plan.probes) == fewest  # no fewer chunks could do it
    else:
        assert plan.probes == 1
    if work.fits(plan.probes, 1, budget):
        assert plan.steps == work.steps or not work.fits(plan.probes, plan.steps + 1, budget)


@given(works, st.integers(1, 200), st.integers(1 << 20, 1 << 38), st.sets(st.integers(1, 200), max_size=3))
def test_compiled_sizes_are_used_again(work: Work, probes: int, budget: int, compiled: set[int]) -> None:
    fresh, plan = make_plan(work, probes, budget), make_plan(work, probes, budget, compiled)
    assert fits_flashrnn(work, plan.probes, plan.steps)
    if plan.probes not in compiled:
        assert plan == fresh
        assert all(fresh.probes > 2 * n or not work.fits(n, min(work.steps, 64), budget) for n in compiled)


def test_one_size_serves_steps_and_their_rests() -> None:
    """96 probes, then 16 that are left over: a padded chunk, not another compilation."""
    work = Work("lstm", 4, 64, 32, 100, probe_bytes=1 << 20, step_bytes=1 << 16)
    compiled: set[int] = set()
    for probes in (96, 16, 96, 90, 1):
        plan = make_plan(work, probes, 1 << 40, compiled)
        compiled.add(plan.probes)
    assert compiled == {96}
    assert make_plan(work, 200, 1 << 40, compiled).probes == 200  # more than twice as many
    assert make_plan(work, 500, 1 << 40, {96, 500}).probes == 500
    assert make_plan(work, 150, 1 << 40, {96, 75}).probes == 75  # 2 x 75 is less than 2 x 96


def test_as_many_heads_as_a_launch_takes() -> None:
    work = Work("elman", 64, 1, 1, 1, probe_bytes=0, step_bytes=0)
    assert make_plan(work, 511, 1).probes == 511  # 65408 heads
    assert make_plan(work, 512, 1).probes == 256  # 65536 would be one too many


def test_even_chunks() -> None:
    work = Work("gru", 1, 16, 4, 10, probe_bytes=1000, step_bytes=0)
    assert make_plan(work, 100, 40_000).probes == 34  # three chunks of 34, not 40, 40 and 20


def test_a_model_larger_than_the_budget_is_evaluated_probe_by_probe() -> None:
    work = Work("lstm", 1, 16, 4, 1000, probe_bytes=1 << 30, step_bytes=1)
    assert make_plan(work, 8, 1 << 20) == Plan(1, 1)  # more steps would take more than what can't be helped
    assert make_plan(work, 8, (1 << 30) + 50) == Plan(1, 50)


def test_one_step_of_one_probe_that_is_too_large() -> None:
    work = Work("lstm", 1, 2**16, 2**12, 5, probe_bytes=0, step_bytes=0)
    with pytest.raises(
        ValueError, match=r"a batch of 4096 with 2 heads of 65536 units over 1 steps is too large for fla"
    ):
        make_plan(work, 3, 1 << 50)


def test_a_batch_that_is_too_large_is_cut() -> None:
    """That of the largest model of the paper but one: 350 heads of 850 units, 1024 sequences, two members."""
    parts = split_batch("lstm", 1024, 700, 850)
    assert [part.stop - part.start for part in parts] == [342, 342, 340]
    assert [part.start for part in parts] == [0, 342, 684]
    for cell in CELLS:
        assert split_batch(cell, 1024, 2, 64) == [slice(0, 1024)]
    with pytest.raises(ValueError, match="flashrnn takes at most 65535 heads in a call, not 70000"):
        split_batch("gru", 8, 70_000, 2)
    with pytest.raises(ValueError, match="a batch of 1 with 60000 heads of 50000 units over 1 steps is too large"):
        split_batch("elman", 8, 60_000, 50_000)


def weights_of(cell: str, vocab: int, embed: int, heads: int, head_dim: int, dtype: torch.dtype) -> RecurrentWeights:
    shape = CELLS[cell]
    sizes = (
        (vocab, embed),
        (heads, shape.input_rows, head_dim, embed),
        (heads, head_dim, shape.recurrent_rows, head_dim),
        (heads, shape.biases, head_dim),
        (vocab, heads * head_dim),
        (vocab,),
    )
    return RecurrentWeights(cell, (-1,) * 6, *(torch.empty(size, dtype=dtype) for size in sizes))


def test_what_a_probe_takes() -> None:
    weights = weights_of("lstm", 10, 4, 2, 8, torch.float32)
    numbers = 10 * 4 + 4 * 16 * 4 + 4 * 16 * 8 + 4 * 16 + 10 * 16 + 10
    with_table = Work.of(weights, 3, 7, torch.float32)
    assert with_table.probe_bytes == 2 * 4 * (numbers + 10 * 4 * 16)
    assert with_table.step_bytes == 2 * 3 * 4 * 16 * (4 + 2 + 4 + 4)  # Wx, states, two caches
    without = Work.of(weights, 1, 7, torch.float32)
    assert without.probe_bytes == 2 * 4 * numbers
    assert without.step_bytes == 2 * 4 * (16 * (4 + 2 + 4 + 4) + 4 * 16 + 4)  # and projections of embeddings
    assert Work.of(weights, 3, 7, torch.bfloat16).step_bytes == with_table.step_bytes // 2


def test_segments_of_the_model_itself() -> None:
    weights = weights_of("elman", 10, 4, 1, 8, torch.float32)
    assert segment_length(weights, 1, 3) == 3
    assert segment_length(weights, 1, 1000) == 1000
    length = segment_length(weights, 1000, 10**6)
    work = Work.of(weights, 1000, 10**6, torch.float32)
    assert work.fits(1, length, CPU_BYTES)
    assert not work.fits(1, length + 1, CPU_BYTES)
