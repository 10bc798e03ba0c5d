"""The model of a step on many ranks: its formula, its simulation, and the count of bytes that measurements rest on."""

import socket
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.scaling_model import (
    Failures,
    Link,
    Work,
    at_share,
    exchange,
    goodput,
    message,
    sent,
    shares,
    simulate,
    slowest,
    step,
)
from tests.server import start

seconds = st.floats(1e-7, 1e-2)
algorithms = st.sampled_from(["ring", "bruck", "direct"])
links = st.builds(
    lambda near, more, **rest: Link("", near=near, far=near + more, **rest),
    near=seconds,
    more=seconds,
    setup=seconds,
    bandwidth=st.floats(1e8, 1e11),
    per_node=st.sampled_from([1, 3, 8, 10_000]),
    algorithm=algorithms,
    post=st.floats(0, 1e-4),
)
works = st.builds(Work, st.just(""), st.integers(1, 5000), seconds, st.floats(0, 1e-4), seconds, seconds, st.just(5))
sizes = st.integers(1, 60)

LINK = Link("", 1e-4, 1e-5, 5e-5, 1e9, 8)
WORK = Work("", 512, 1e-3, 1e-6)


@given(works, links)
def test_one_rank_exchanges_nothing(work, link):
    assert exchange(link, 1, message(work.probes, 1)) == 0
    assert sent(work.probes, 1) == 0
    assert step(work, link, 1) == pytest.approx(
        work.probes * (work.probe + work.update) + work.fixed + work.digest / 5, rel=1e-12
    )


@given(works, links, sizes, st.booleans())
@settings(max_examples=200, deadline=None)
def test_without_jitter_formula_and_simulation_agree(work, link, ranks, batch):
    """Exactly in one node; around a ring of several, ranks settle into step within the excess of one far hop."""
    steps = 10
    simulated = simulate(work, link, ranks, steps, batch=batch)
    computed = steps * step(work, link, ranks, batch)
    settling = link.far - link.near if link.algorithm == "ring" and ranks > link.per_node else 0.0
    assert abs(simulated - computed) <= settling + 1e-9 * computed


@given(works, links, st.integers(1, 1000), st.booleans())
def test_more_probes_take_no_less(work, link, ranks, batch):
    more = replace(work, probes=work.probes + 1)
    assert sent(more.probes, ranks) >= sent(work.probes, ranks)
    assert step(more, link, ranks) >= step(work, link, ranks)


@given(works, links, st.integers(1, 500))
def test_the_exchange_grows_with_ranks_and_bytes(work, link, ranks):
    assert exchange(link, ranks + 1, 100) >= exchange(link, ranks, 100)
    assert exchange(link, ranks, 101) >= exchange(link, ranks, 100)


@given(works, links, st.integers(1, 2000), st.booleans())
def test_no_more_than_the_ideal_speed_up(work, link, ranks, batch):
    assert step(work, link, 1) / step(work, link, ranks, batch) <= ranks * (1 + 1e-12)


@given(st.integers(1, 5000), st.integers(1, 5000), st.booleans())
def test_shares_hold_every_probe_once(probes, ranks, batch):
    share, parts = shares(probes, ranks, batch)
    assert share * (ranks // parts) >= probes
    assert (share - 1) * (ranks // parts) < probes
    assert parts == 1 or (batch and parts * probes <= ranks)


def test_bytes_of_a_step():
    assert message(512, 4) == 24 + 16 * 128
    assert sent(512, 4) == 3 * (24 + 16 * 128)
    assert sent(512, 1000) == 999 * 40
    assert max(sent(512, ranks) for ranks in range(1, 224)) < 16_000 < sent(512, 224)


def test_beyond_one_rank_a_probe_only_the_batch_axis_helps():
    alone = replace(WORK, probe=1.0, update=0.0)
    assert step(alone, LINK, 1024) > step(alone, LINK, 512)
    assert step(alone, LINK, 1024, batch=True) < step(alone, LINK, 512)


@given(st.floats(0.01, 0.5), st.integers(1, 1000))
def test_the_slowest_of_more_ranks_is_slower(jitter, ranks):
    assert slowest(jitter, ranks + 1) > slowest(jitter, ranks)
    assert slowest(0.0, ranks) == 1


@pytest.mark.parametrize("jitter", [0.02, 0.2])
@pytest.mark.parametrize("algorithm", ["direct", "bruck"])
def test_with_jitter_the_formula_is_the_mean_of_the_simulation(jitter, algorithm):
    work, link = replace(WORK, jitter=jitter), replace(LINK, algorithm=algorithm)
    simulated = simulate(work, link, 64, 1000, seed=1) / 1000
    assert step(work, link, 64) == pytest.approx(simulated, rel=0.01)


def test_with_jitter_a_ring_is_no_slower_than_the_formula():
    """The slowest rank's losses reach its neighbours before they have gone round: those begin their next step."""
    work = replace(WORK, jitter=0.2)
    simulated = simulate(work, LINK, 64, 1000, seed=1) / 1000
    computed = step(work, LINK, 64)
    assert computed - exchange(LINK, 64, message(512, 64)) < simulated < computed


def test_simulations_of_one_seed_are_the_same():
    work = replace(WORK, jitter=0.2)
    assert simulate(work, LINK, 8, 20, seed=3) == simulate(work, LINK, 8, 20, seed=3)
    assert simulate(work, LINK, 8, 20, seed=3) != simulate(work, LINK, 8, 20, seed=4)


@given(works, links, sizes, st.floats(1, 1e7), st.floats(0, 1e3))
def test_goodput_is_a_part_of_the_time(work, link, ranks, between, restart):
    some = goodput(work, link, ranks, Failures(between, restart))
    assert 0 <= some <= 1
    assert goodput(work, link, ranks, Failures(between / 2, restart)) <= some
    assert goodput(work, link, ranks, Failures(between, restart + 1)) <= some
    assert goodput(work, link, ranks, Failures()) == 1


def test_goodput_of_the_simulation():
    """A failure of some rank every five steps, and replays that take as long as a restart."""
    work = replace(WORK, update=5e-5)
    seconds = step(work, LINK, 4)
    failures = Failures(between=20 * seconds, restart=seconds, checkpoint_every=20)
    steps = 20_000
    simulated = steps * seconds / simulate(work, LINK, 4, steps, failures=failures, seed=2)
    assert goodput(work, LINK, 4, failures) == pytest.approx(simulated, rel=0.02)
    assert simulated < 0.7


def test_at_share_is_the_least_number_from_which_on():
    found = at_share(WORK, LINK, 0.1, most=5000)
    assert found is not None

    def part(ranks):
        return exchange(LINK, ranks, message(WORK.probes, ranks)) / step(WORK, LINK, ranks)

    assert part(found - 1) < 0.1 <= part(found)
    assert all(part(ranks) >= 0.1 for ranks in range(found, 5000))
    assert at_share(WORK, LINK, 0.1, most=found - 1) is None


def test_an_unknown_algorithm():
    with pytest.raises(ValueError, match="'star': give ring, bruck or direct"):
        exchange(replace(LINK, algorithm="star"), 4, 100)


linux = pytest.mark.skipif(sys.platform != "linux", reason="TCP_INFO is Linux's")


@linux
def test_the_kernel_counts_what_a_connection_sends():
    from bench.wire import sent as counted

    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as ours:
        theirs, _ = server.accept()
        with theirs:
            payload, headers = counted()
            ours.sendall(bytes(100_000))
            left = 100_000
            while left:
                left -= len(theirs.recv(left))
            after, headers_after = counted()
    assert after - payload == 100_000
    assert headers_after - headers >= 2 * 52
    assert (headers_after - headers) % 52 == 0


@linux
def test_what_a_step_sends_is_what_the_model_says():
    """As the kernel counts it; gloo's own words are the rest."""
    from bench.distributed import bytes_of
    from bench.ranks import Ranks

    start()
    with Ranks(2) as group:
        found = bytes_of(group, steps=4)
    assert found["probes"] == 512
    assert sent(512, 2) <= found["payload"] <= 1.1 * sent(512, 2)
    assert found["headers"] > 0


def test_work_that_fails_on_a_rank_is_told():
    from bench.distributed import _steps
    from bench.ranks import Ranks

    start()
    with Ranks(1) as group, pytest.raises(RuntimeError, match=r"rank 0 of 1 failed:[^$]*KeyError: 'tiny, n=3'"):
        group.call(_steps, "tiny", 3)
