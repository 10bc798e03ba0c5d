"""What holds for every transform."""

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.transforms.cases import CASES, CONTEXT, TABLES, run, same, table
from zo_kernels.transforms import chain

each_transform = pytest.mark.parametrize("name", CASES)
each_table = pytest.mark.parametrize("coeffs", TABLES.values(), ids=TABLES)

numbers = st.floats(-1e300, 1e300) | st.sampled_from([0.0, 1.0, -1.0, 0.1])
tables = st.lists(numbers, max_size=12)


def history(distribution="rademacher"):
    """Steps of different lengths."""
    rows = [TABLES["several"], [], TABLES["ties"], TABLES["one"], TABLES["several"]]
    return [table(coeffs, distribution, first=100 * i) for i, coeffs in enumerate(rows)]


@each_transform
@each_table
def test_update_is_pure(name, coeffs):
    transform = CASES[name]
    _, state = run(transform, history())
    gradient = table(coeffs)
    before = {key: value.clone() for key, value in state.items()}
    results = [transform.update(gradient, state, CONTEXT) for _ in range(2)]
    assert gradient == table(coeffs)
    assert same(state, before)
    assert results[0][0] == results[1][0]
    assert same(results[0][1], results[1][1])
    for value in results[0][1].values():  # what a caller does to the new state must not reach the old one
        value.zero_()
    assert same(state, before)


@each_transform
def test_init_gives_each_caller_its_own_state(name):
    one, other = CASES[name].init(), CASES[name].init()
    assert same(one, other)
    assert all(one[key] is not other[key] for key in one)


@each_transform
@pytest.mark.parametrize("distribution", ["rademacher", "normal", "uniform", "sparse-64"])
def test_the_distribution_stays(name, distribution):
    assert run(CASES[name], history(distribution))[0].distribution == distribution


@each_transform
def test_a_state_that_was_saved_continues(name, tmp_path):
    transform, steps = CASES[name], history()
    for cut in range(1, len(steps)):
        _, state = run(transform, steps[:cut])
        assert all(value.device.type == "cpu" for value in state.values())
        safetensors.torch.save_file(state, tmp_path / "state")
        loaded = safetensors.torch.load_file(tmp_path / "state")
        assert same(loaded, state)
        expected = run(transform, steps[cut:], state)
        actual = run(transform, steps[cut:], loaded)
        assert actual[0] == expected[0]
        assert same(actual[1], expected[1])


@each_transform
def test_the_state_of_another_transform_is_refused(name):
    transform = CASES[name]
    with pytest.raises(ValueError, match="the state is of another"):
        transform.update(table([1.0]), {**transform.init(), "99.velocity": torch.zeros(3)}, CONTEXT)
    for missing in transform.init():
        state = transform.init()
        del state[missing]
        with pytest.raises(ValueError, match="the state is of another"):
            transform.update(table([1.0]), state, CONTEXT)


@each_transform
@each_table
def test_rows_stay_those_of_the_table(name, coeffs):
    """In the first step, where momentum has no others."""
    transform, gradient = CASES[name], table(coeffs)
    result, _ = transform.update(gradient, transform.init(), CONTEXT)
    assert torch.equal(result.seeds, gradient.seeds)
    if not any(coeffs):
        assert not bool(result.coeffs.any())


@pytest.mark.parametrize("first", CASES)
@pytest.mark.parametrize("second", CASES)
def test_a_chain_is_one_after_the_other(first, second):
    a, b = CASES[first], CASES[second]
    a_state, b_state, both_state = a.init(), b.init(), chain(a, b).init()
    for step, gradient in enumerate(history()):
        context = CONTEXT._replace(step=step)
        actual, both_state = chain(a, b).update(gradient, both_state, context)
        between, a_state = a.update(gradient, a_state, context)
        expected, b_state = b.update(between, b_state, context)
        assert actual == expected
        parts = {f"0.{key}": value for key, value in a_state.items()} | {f"1.{k}": v for k, v in b_state.items()}
        assert same(both_state, parts)


@each_transform
@given(coeffs=tables)
def test_minus_the_gradient_gives_minus_the_result(name, coeffs):
    transform = CASES[name]
    plus, _ = transform.update(table(coeffs), transform.init(), CONTEXT)
    minus, _ = transform.update(table([-c for c in coeffs]), transform.init(), CONTEXT)
    assert torch.equal(minus.coeffs, -plus.coeffs)
    assert bool(plus.coeffs.isfinite().all())


@each_transform
@given(coeffs=st.lists(st.sampled_from([0.0, 0.5, -0.25, 3.0, -0.1, 1e-8]), min_size=2, max_size=12), data=st.data())
def test_the_order_of_the_rows_does_not_matter(name, coeffs, data):
    transform, order = CASES[name], data.draw(st.permutations(range(len(coeffs))))
    straight, _ = transform.update(table(coeffs), transform.init(), CONTEXT)
    shuffled, _ = transform.update(table([coeffs[i] for i in order]), transform.init(), CONTEXT)
    torch.testing.assert_close(shuffled.coeffs, straight.coeffs[order], rtol=1e-9, atol=1e-12)
