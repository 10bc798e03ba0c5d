"""The CPU kernel of activity perturbation against the float64 reference, on every instruction set."""

import os
import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from tests.backends.activity.test_estimator import SHAPES, each_local, flat, problem_of
from tests.recurrent import TOLERANCE, Shape, each_cell, make_batch, make_model, make_states
from zo_kernels import _C
from zo_kernels.backends.activity import kernel, reference
from zo_kernels.backends.activity.problem import ActivityProblem
from zo_kernels.models import MODELS

TILES = Shape(vocab=40, embed=9, heads=2, head_dim=21, batch=70, time=35)
"""Several tiles, chunks and blocks of signs."""

PANELS = Shape(vocab=4200, embed=1, heads=1, head_dim=9, batch=3, time=18)
"""Several panels of the output, more than errors are kept of, in two chunks."""

KERNEL_SHAPES = (
    *SHAPES,
    TILES,
    PANELS,
    Shape(vocab=3, embed=2, heads=1, head_dim=300, batch=17, time=5),
    Shape(vocab=300, embed=2, heads=2, head_dim=70, batch=5, time=3),  # panels, whose errors are all kept
)


def check(problem: ActivityProblem) -> None:
    """The kernel's float32 against float64. A difference of losses, rounded to 1e-6, is divided by 2 sigma."""
    assert kernel.has_kernel(problem)
    actual, expected = kernel.activity(_C, problem), reference.activity(problem)
    estimates = problem.is_perturbed and problem.credit_length > problem.local_gradient
    tolerance = (1e-3 if estimates else 5e-6) * max(float(flat(expected).abs().max()), 1e-3)
    for gradient, wanted in zip(actual.gradients, expected.gradients, strict=True):
        assert (gradient.shape, gradient.dtype) == (wanted.shape, torch.float32)
        assert (gradient - wanted).abs().max() <= tolerance
    scored = int((problem.targets >= 0).sum())
    assert actual.nats.shape == expected.nats.shape
    assert actual.nats.numel() == 0 or (actual.nats - expected.nats).abs().max() <= TOLERANCE * scored
    assert abs(actual.clean - expected.clean) <= TOLERANCE * scored


def check_shape(cell: str, shape: Shape, local: bool) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model, batch = make_model(cell, shape, dtype), make_batch(shape)
        states = tuple(state[0, 0] for state in make_states(model, 1, shape.batch))
        for credit, start, probes in ((1, states, 1), (3, (), 3), (99, states, 2), (99, (), 0)):
            check(
                problem_of(
                    model, batch, probes=probes, sigma=2**-4, credit=credit, local=local, states=start, first=2**31
                )
            )


@each_cell
@each_local
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_the_kernel_is_the_reference(cell, shape, local):
    check_shape(cell, shape, local)


@hypothesis.settings(deadline=None, max_examples=40)
@hypothesis.given(
    st.sampled_from(list(MODELS)),
    st.tuples(*(st.integers(1, most) for most in (40, 5, 3, 20, 70, 20))).map(lambda sizes: Shape(*sizes)),
    st.booleans(),
    st.integers(0, 2),
    st.integers(1, 5),
    st.booleans(),
    st.integers(0, 2**32 - 70),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_any_sizes(cell, shape, local, probes, credit, has_states, first, ignored):
    model, batch = make_model(cell, shape), make_batch(shape, ignored=ignored)
    states = tuple(state[0, 0] for state in make_states(model, 1, shape.batch)) if has_states else ()
    check(problem_of(model, batch, probes=probes, sigma=2**-4, credit=credit, local=local, states=states, first=first))


@each_cell
@each_local
@pytest.mark.parametrize("probes", [0, 2])
def test_the_bits_do_not_depend_on_the_number_of_threads(cell, local, probes):
    shape = TILES._replace(batch=300)
    problem = problem_of(make_model(cell, shape), make_batch(shape), probes=probes, local=local)
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(kernel.activity(_C, problem))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert torch.equal(found[0].clean, other.clean)
        assert torch.equal(found[0].nats, other.nats)
        assert torch.equal(flat(found[0]), flat(other))


@pytest.mark.parametrize("isa", _C.supported_isas())
def test_instruction_sets(isa):
    code = (
        "from tests.backends.activity.test_kernel import PANELS, SHAPES, TILES, check_shape\n"
        "[check_shape(cell, shape, local) for cell in ('lstm', 'gru', 'elman')\n"
        " for shape in (SHAPES[2], TILES, PANELS) for local in (False, True)]\n"
        "from zo_kernels import _C\n"
        "print(_C.active_isa())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "ZO_KERNELS_ISA": isa}, capture_output=True, text=True
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, isa), ran.stderr


def test_the_local_gradient_alone_runs_no_probes():
    """Whatever the probes and eps: the bits are the same, and no loss of a probe is measured."""
    model, batch = make_model("lstm", TILES), make_batch(TILES)
    alone = kernel.activity(_C, problem_of(model, batch, probes=0, credit=1, local=True))
    found = kernel.activity(_C, problem_of(model, batch, probes=3, sigma=0.5, credit=1, local=True))
    assert torch.equal(flat(found), flat(alone))
    assert torch.equal(found.nats, torch.zeros(3, 2, dtype=torch.float64))


@each_cell
def test_saturated_units_have_no_local_gradient(cell):
    """Pre-activations of 1e4 or -1e4 saturate every gate. The derivatives are 0 and not NaN."""
    model, batch = make_model(cell), make_batch()
    for bias in (1e4, -1e4):
        with torch.no_grad():
            model.bias.fill_(bias)
        problem = problem_of(model, batch, credit=1, local=True)
        assert flat(kernel.activity(_C, problem)).isfinite().all()
        check(problem)
