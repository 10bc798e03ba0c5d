"""The formula of a step on many ranks."""

from dataclasses import astuple, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scaling import Plan, check, of_cpu, sent, shares

seconds = st.floats(1e-7, 1e-2)
some_plans = st.builds(
    lambda near, more, **rest: Plan("", near=near, far=near + more, **rest),
    probe=seconds,
    update=seconds,
    fixed=seconds,
    setup=seconds,
    near=seconds,
    more=seconds,
    bandwidth=st.floats(1e8, 1e11),
    per_node=st.sampled_from([1, 3, 8, 10_000]),
    post=st.none() | st.floats(0, 1e-4),
    jitter=st.floats(0, 0.3),
)
probes, sizes = st.integers(1, 5000), st.integers(1, 2000)
RING = Plan("", 1e-3, 1e-6, 0.0, setup=1e-4, near=1e-5, far=5e-5, bandwidth=1e9, per_node=8)


@given(some_plans, probes)
def test_one_rank_exchanges_nothing(plan, n):
    assert plan.exchange(n, 1) == sent(n, 1) == 0
    assert plan.step(n, 1) == pytest.approx(n * (plan.probe + plan.update) + plan.fixed, rel=1e-12)


@given(some_plans, probes, sizes, st.booleans())
def test_more_probes_and_more_ranks(plan, n, ranks, batch):
    assert plan.step(n + 1, ranks) >= plan.step(n, ranks)
    assert plan.exchange(n + 1, ranks) >= plan.exchange(n, ranks)
    assert plan.step(n, 1) / plan.step(n, ranks, batch) <= ranks * (1 + 1e-12)


@given(probes, probes, st.booleans())
def test_shares_hold_every_probe_once(n, ranks, batch):
    share, parts = shares(n, ranks, batch)
    assert share * (ranks // parts) >= n > (share - 1) * (ranks // parts)
    assert parts == 1 or (batch and parts * n <= ranks)


def test_by_hand():
    """Two nodes of eight: 14 near hops and 2 far ones around a ring, of which a message passes all but one."""
    assert sent(512, 16) == 15 * (24 + 16 * 32)
    around = (14 * 1e-5 + 2 * 5e-5) * 15 / 16
    assert RING.exchange(512, 16) == pytest.approx(1e-4 + around + sent(512, 16) / 1e9)
    assert replace(RING, post=2e-6).exchange(512, 16) == pytest.approx(1e-4 + 5e-5 + 15 * 2e-6 + sent(512, 16) / 1e9)
    assert RING.step(512, 16) == pytest.approx(32e-3 + RING.exchange(512, 16) + 512e-6)
    assert replace(RING, jitter=0.02).step(512, 16) / RING.step(512, 16) == pytest.approx(1.035, abs=0.002)
    assert RING.step(4, 16, batch=True) < RING.step(4, 16)
    assert max(sent(512, ranks) for ranks in range(1, 224)) < 16_000 < sent(512, 224)


def test_limits_are_the_least_ranks_from_which_on():
    found = RING.limits(96)["exchange 10% from W"]
    parts = [RING.exchange(96, w) / RING.step(96, w) for w in range(1, 5000)]
    assert parts[found - 2] < 0.1 <= min(parts[found - 1 :])
    assert replace(RING, probe=10.0).limits(4096)["exchange 50% from W"] is None


def test_constants_from_measurements():
    """Of a machine whose steps and messages are those of a plan, the plan comes back."""
    known = Plan("tiny, gloo", 1e-3, 1000 / 110e9, 2e-3, 1e-4, 3e-5, 3e-5, 1e9, per_node=64, post=4e-5)
    steps = [
        {"model": "tiny", "processes": w, "probes": n, "parameters": 1000, "cores_of_others": 0.0}
        | {"least": known.step(n, w), "median": known.step(n, w)}
        for w, n in ((1, 24), (1, 96), (2, 96))
    ]
    exchanges = [
        {"way": way, "processes": w, "probes": 96, "least_ms": 1e3 * (left_out + (w - 1) * known.post)}
        for way, left_out in (("Replicas.exchange", known.setup + known.near), ("all_to_all_single", 0.0))
        for w in (2, 4)
    ]
    loopback = {"hop_bytes": 10**6, "small_seconds": 2 * known.near, "large_seconds": 2 * known.near + 1e-3}
    measured = {"steps": steps, "exchange": exchanges, "loopback": loopback, "machine": {"cores": 2}}
    assert astuple(of_cpu(measured, "tiny")) == pytest.approx(astuple(known))
    assert [row["W"] for row in check(measured)] == [1, 2]
    assert all(row["formula"] == pytest.approx(row["measured"]) for row in check(measured))
