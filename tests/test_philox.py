"""The probe contract: Random123's check values, and a scalar implementation written from the contract's text alone."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import EDGE, LAST
from zo_kernels import _C
from zo_kernels.philox import BLOCK_SIGNS, Stream, element_words, philox4x32_10, probe_bits, probe_seeds, rounding_bits

WORD = 2**32

seeds = st.integers(-(2**63), 2**64 - 1)
blocks = st.one_of(
    st.integers(0, 2**20),
    st.integers(0, 2**56 - 1),
    st.integers(1, 2**24).flatmap(lambda k: st.integers(k * 2**32 - 8, k * 2**32 + 8)),  # around element 2^39 * k
)


def known_answers():
    """Rows of 10 rounds: counter (4 words), key (2), output (4)."""
    lines = (Path(__file__).parent / "data" / "philox4x32_kat.txt").read_text().splitlines()
    rows = [line.split() for line in lines if line.split()[:2] == ["philox4x32", "10"]]
    assert len(rows) == 3
    return [[int(word, 16) for word in row[2:]] for row in rows]


def scalar_philox(counter, key):
    """Philox4x32-10 as in the paper: (multiplier products, swap, XOR the key), then the key's Weyl step."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c0, WORD)
        high1, low1 = divmod(0xCD9E8D57 * c2, WORD)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % WORD, (k1 + 0xBB67AE85) % WORD
    return [c0, c1, c2, c3]


def scalar_word(seed, j, stream, number):
    """The word of the contract that has a bit of element j."""
    seed %= 2**64
    words = scalar_philox([j // 128 % WORD, j // 128 // WORD, stream, number], [seed % WORD, seed // WORD])
    return words[j // 32 % 4]


def scalar_bit(seed, j, stream=0, number=0):
    """bit(j) of the contract."""
    return scalar_word(seed, j, stream, number) >> (j % 32) & 1 == 1


@pytest.mark.parametrize("row", known_answers(), ids=("zeros", "ones", "pi"))
def test_known_answers(row):
    counter, key, output = row[:4], row[4:6], row[6:]
    assert scalar_philox(counter, key) == output
    assert philox4x32_10(counter, key).tolist() == output
    assert list(_C.philox4x32_10(counter, key)) == output


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(0, WORD - 1), min_size=6, max_size=6))
def test_all_three_generators_agree(words):
    counter, key = words[:4], words[4:]
    expected = scalar_philox(counter, key)
    assert philox4x32_10(counter, key).tolist() == expected
    assert list(_C.philox4x32_10(counter, key)) == expected


def test_counters_and_keys_broadcast():
    counters = np.arange(24, dtype=np.uint32).reshape(2, 3, 4)
    words = philox4x32_10(counters, [5, 6])
    assert (words.shape, words.dtype) == ((2, 3, 4), np.uint32)
    assert words[1, 2].tolist() == scalar_philox(counters[1, 2].tolist(), [5, 6])


@pytest.mark.parametrize(("seed", "offset"), [(0, 0), (-7, 128), (2**64 - 1, 2**39 - 128)])
def test_bits_for_rounding(seed, offset):
    expected = []
    for j in range(offset, offset + 300):
        counter = [j // 128 % WORD, j // 128 // WORD, 3, j % 128 // 8]
        words = scalar_philox(counter, [seed % 2**64 % WORD, seed % 2**64 // WORD])
        expected.append(words[j % 8 // 2] >> (16 * (j % 2)) & 0xFFFF)
    assert rounding_bits(300, seed, offset).tolist() == expected


def test_one_table_of_streams():
    assert _C.streams() == {stream.name: int(stream) for stream in Stream}
    assert len(set(Stream)) == len(Stream.__members__)  # no number has two names
    assert BLOCK_SIGNS == 128


@settings(deadline=None, max_examples=60)
@given(seed=seeds, block=blocks, numel=st.integers(0, 400), data=st.data())
def test_probe_bits(seed, block, numel, data):
    offset = min(128 * block, LAST - 127 - 512)
    bits = probe_bits(numel, seed, offset)
    assert (bits.shape, bits.dtype) == ((numel,), np.bool_)
    if numel:
        for i in {0, numel - 1, *data.draw(st.lists(st.integers(0, numel - 1), max_size=20))}:
            assert bits[i] == scalar_bit(seed, offset + i)


@settings(deadline=None, max_examples=60)
@given(
    seed=seeds,
    block=blocks,
    numel=st.integers(1, 400),
    stream=st.sampled_from(Stream),
    number=st.integers(0, 31),
    data=st.data(),
)
def test_other_streams(seed, block, numel, stream, number, data):
    offset = min(128 * block, LAST - 127 - 512)
    bits = probe_bits(numel, seed, offset, stream=stream, number=number)
    words = element_words(numel, seed, offset, stream)
    assert (words.shape, words.dtype) == ((numel,), np.uint32)
    for i in {0, numel - 1, *data.draw(st.lists(st.integers(0, numel - 1), max_size=20))}:
        j = offset + i
        assert bits[i] == scalar_bit(seed, j, stream, number)
        assert words[i] == scalar_word(seed, j, stream, j % 32)


@settings(deadline=None, max_examples=40)
@given(seed=seeds, block=blocks, numel=st.integers(0, 3000), skipped=st.integers(0, 20))
def test_a_slice_knows_its_signs(seed, block, numel, skipped):
    offset = min(128 * block, 2**62)
    whole = probe_bits(numel + 128 * skipped, seed, offset)
    assert np.array_equal(whole[128 * skipped :], probe_bits(numel, seed, offset + 128 * skipped))


def test_seeds_count_modulo_64_bits():
    assert np.array_equal(probe_bits(1000, -1), probe_bits(1000, 2**64 - 1))
    assert not np.array_equal(probe_bits(1000, 1), probe_bits(1000, 1 + 2**32))  # the high half counts
    assert not np.array_equal(probe_bits(1000, 0, 0), probe_bits(1000, 0, EDGE))  # and that of the block


def test_signs_are_balanced_and_uncorrelated():
    """Sums of n fair signs stay within 5 sqrt(n): a failure would be a fault, not chance, and the draw is fixed."""
    n = 2**16
    a, b = (np.where(probe_bits(n, seed, 2**41), 1, -1) for seed in probe_seeds(7, 3, 2).tolist())
    for signs in (a, b, a * b, a[1:] * a[:-1], a[128:] * a[:-128]):
        assert abs(signs.sum()) < 5 * n**0.5


@pytest.mark.parametrize("offset", [-128, 1, 127, 129, 2**40 + 64])
def test_offsets_are_multiples_of_a_block(offset):
    for make in (probe_bits, lambda *at: element_words(*at, Stream.NORMAL)):
        with pytest.raises(ValueError, match=f"offset must be a non-negative multiple of 128, not {offset}"):
            make(10, 0, offset)


@settings(deadline=None, max_examples=60)
@given(run_seed=seeds, step=st.integers(0, 2**64 - 1), i=st.integers(0, 300))
def test_seed_of_a_probe_is_the_contract_of_run_seed_step_and_index(run_seed, step, i):
    key = [run_seed % 2**64 % WORD, run_seed % 2**64 // WORD]
    words = scalar_philox([step % WORD, step // WORD, Stream.SEEDS, i], key)
    made = probe_seeds(run_seed, step, i + 1)
    assert (made.shape, made.dtype) == ((i + 1,), np.int64)
    assert int(made[i]) % 2**64 == words[0] + words[1] * WORD


@settings(deadline=None, max_examples=30)
@given(run_seed=seeds, step=st.integers(0, 2**64 - 1), few=st.integers(0, 100), more=st.integers(0, 100))
def test_more_probes_begin_with_the_same_seeds(run_seed, step, few, more):
    assert np.array_equal(probe_seeds(run_seed, step, few), probe_seeds(run_seed, step, few + more)[:few])


def test_no_two_probes_share_a_seed():
    made = [
        probe_seeds(run_seed, step, 500)
        for run_seed in (0, 1, 2, 2**32, -1)
        for step in (*range(60), 2**32 - 1, 2**32, 2**32 + 1, 2**33)
    ]
    assert len(np.unique(np.concatenate(made))) == sum(map(len, made)) == 5 * 64 * 500


@pytest.mark.parametrize(("step", "num_probes"), [(-1, 3), (2**64, 3), (0, -1), (0, 2**32)])
def test_probe_seeds_out_of_range(step, num_probes):
    with pytest.raises(ValueError, match="step must be in"):
        probe_seeds(0, step, num_probes)
