"""One call of flashrnn in its native layout: what reaches the kernel, and what is done when it can't be trusted."""

import logging
import sys

import pytest
import torch
from torch import Tensor

from tests.models.flashrnn.stand_in import GPU, cuda_backend, forward
from zo_kernels.models.flashrnn import call
from zo_kernels.models.flashrnn.call import Recurrence, check_size, elements
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.load import flashrnn

each_cell = pytest.mark.parametrize("cell", CELLS)

T, B, H, D = 5, 3, 4, 6


def inputs(cell: str, heads: int = H, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """wx [T, B, MN, I, D], states [S, B, MN, D] after a beginning, recurrent [MN, P, R, D], bias [MN, G, D]."""
    shape = CELLS[cell]
    generator = torch.Generator().manual_seed(heads)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(dtype)

    states = 2 * torch.rand(shape.states, B, heads, D, generator=generator).to(dtype) - 1
    if cell == "slstm":
        states[2] += 2  # n is at least 1
    recurrent = normal(heads, D, shape.recurrent_rows, D) / D**0.5
    return normal(T, B, heads, shape.input_rows, D), states, recurrent, normal(heads, shape.biases, D)


@each_cell
@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["vanilla", "cuda"])
def test_it_computes_what_flashrnn_does_in_its_default_layout(
    cell: str, fresh: bool, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wx, states, recurrent, bias = inputs(cell, dtype=torch.float32)
    if fresh:
        states = torch.zeros_like(states)
    expected, expected_last = flashrnn().flashrnn(
        wx.permute(1, 0, 3, 2, 4),  # [B, T, I, N, D]
        recurrent.permute(2, 0, 3, 1),  # [R, N, D, P]
        bias.transpose(0, 1),  # [G, N, D]
        None if fresh else states[:, :, None],  # [S, B, 1, N, D]
        function=cell,
        backend="vanilla",
        dtype="float32",
    )
    with cuda_backend(monkeypatch):
        hidden, last = Recurrence(cell, D, name)(wx, states, recurrent, bias)
    assert hidden.shape == (T, B, H, D)
    torch.testing.assert_close(hidden.transpose(0, 1), expected[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(last, expected_last[:, :, 0], rtol=0, atol=1e-6)


@each_cell
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_permuted_or_copied_on_the_way_to_cuda(
    cell: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = inputs(cell, dtype=dtype)
    with cuda_backend(monkeypatch) as kernel:
        Recurrence(cell, D)(*tensors)
    (config,), (reached,) = kernel.configs, kernel.calls
    assert config.backend == "cuda"
    for permutation in ("input", "recurrent", "bias", "output", "output_backward"):
        assert getattr(config, f"_internal_{permutation}_permutation") is None
    for mine, its in zip(tensors, reached, strict=True):
        assert (its.data_ptr(), its.shape, its.dtype) == (mine.data_ptr(), mine.shape, dtype)
    assert (config.num_heads, config.hidden_dim, config.function) == (H, H * D, cell)


def test_what_has_to_be_compiled_does_not_depend_on_batch_or_length(monkeypatch: pytest.MonkeyPatch) -> None:
    wx, states, recurrent, bias = inputs("lstm")
    with cuda_backend(monkeypatch) as kernel:
        recurrence = Recurrence("lstm", D)
        recurrence(wx, states, recurrent, bias)
        recurrence(wx[:2, :1].contiguous(), states[:, :1].contiguous(), recurrent, bias)
    assert kernel.configs[0].defines == kernel.configs[1].defines
    assert recurrence.config("cuda_fused", torch.bfloat16, H, 24).batch_size == 24


def test_the_last_states_do_not_keep_those_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """flashrnn's do, of its `cuda`."""
    with cuda_backend(monkeypatch):
        _, last = Recurrence("lstm", D)(*inputs("lstm"))
    assert last.untyped_storage().nbytes() == last.numel() * last.element_size()


def test_the_stand_in_rounds_where_cuda_does() -> None:
    """Products and states to the dtype: its float64 is exact, its bfloat16 is not."""
    wx, states, recurrent, bias = inputs("lstm", dtype=torch.bfloat16)
    exact = forward("lstm", wx.double(), states.double(), recurrent.double(), bias.double())
    rounded = forward("lstm", wx, states, recurrent, bias)
    assert rounded.dtype == torch.bfloat16
    assert 1e-4 < (rounded.double() - exact).abs().max() < 0.05


@pytest.mark.parametrize(
    ("dtype", "error", "level"),
    [
        (torch.float32, 0.0, logging.INFO),
        (torch.float32, 1e-3, logging.WARNING),
        (torch.bfloat16, 1e-3, logging.INFO),
        (torch.bfloat16, 0.1, logging.WARNING),
    ],
)
def test_the_first_call_is_compared_with_vanilla(
    dtype: torch.dtype,
    error: float,
    level: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "zo_kernels")
    tensors = inputs("gru", dtype=dtype)
    with cuda_backend(monkeypatch) as kernel:
        kernel.error = error
        recurrence = Recurrence("gru", D)
        for _ in range(2):
            recurrence(*tensors)
        recurrence(*inputs("gru", heads=2, dtype=dtype))
    compared = [record for record in caplog.records if "differs from vanilla in float64 by" in record.message]
    assert [record.levelno for record in compared] == [level, level]  # once for 4 heads, once for 2
    assert "with 4 heads" in compared[0].message
    assert len(kernel.calls) == 3


@pytest.mark.parametrize("error", [1.0, float("nan")])
def test_wrong_results_are_not_used(
    error: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = inputs("lstm")
    expected, _ = Recurrence("lstm", D)(*tensors)
    with cuda_backend(monkeypatch) as kernel:
        kernel.error = error
        recurrence = Recurrence("lstm", D)
        hidden, _ = recurrence(*tensors)
        recurrence(*tensors)
        with pytest.raises(
            RuntimeError, match=r"backend 'cuda' is wrong: two steps have an error of .*; use backend='vanilla'"
        ):
            Recurrence("lstm", D, "cuda")(*tensors)
    assert torch.equal(hidden, expected)
    assert len(kernel.calls) == 2
    assert "flashrnn's backend cuda is wrong" in caplog.text
    assert "using the slow backend vanilla instead" in caplog.text


def test_values_that_are_not_finite_are_not_held_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    wx, states, recurrent, bias = inputs("elman")
    wx[0, 0, 0] = float("nan")
    with cuda_backend(monkeypatch) as kernel:
        recurrence = Recurrence("elman", D, "cuda")
        hidden, _ = recurrence(wx, states, recurrent, bias)
    assert hidden.isnan().any()
    assert len(kernel.calls) == 1


@pytest.mark.parametrize("failure", [RuntimeError("Error building extension 'lstm'\nninja: ..."), OSError()])
def test_what_can_not_be_built(
    failure: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tensors = inputs("lstm")
    tried = []

    def fail(training: bool, config: object) -> None:
        tried.append(config)
        raise failure

    with cuda_backend(monkeypatch):
        monkeypatch.setattr(sys.modules["flashrnn.flashrnn.flashrnn"], "FlashRNNFuncGenerator", fail)
        with pytest.raises(RuntimeError) as info:
            Recurrence("lstm", D, "cuda")(*tensors)
        message = "OSError" if isinstance(failure, OSError) else "Error building extension 'lstm'"
        assert str(info.value) == f"flashrnn's backend 'cuda' can't be built: {message}; use backend='vanilla'"
        recurrence = Recurrence("lstm", D)
        for _ in range(2):
            hidden, _ = recurrence(*tensors)
    assert torch.equal(hidden, Recurrence("lstm", D)(*tensors)[0])
    assert len(tried) == 2  # once each
    assert caplog.text.count("can't be built") == 1


def test_memory_that_runs_out_is_no_reason_for_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(training: bool, config: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with cuda_backend(monkeypatch):
        monkeypatch.setattr(sys.modules["flashrnn.flashrnn.flashrnn"], "FlashRNNFuncGenerator", fail)
        with pytest.raises(torch.OutOfMemoryError):
            Recurrence("lstm", D)(*inputs("lstm"))


def test_the_choice_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "zo_kernels")
    with cuda_backend(monkeypatch):
        recurrence = Recurrence("lstm", D)
        for _ in range(3):
            recurrence(*inputs("lstm"))
        recurrence.backend(torch.device("cpu"), torch.bfloat16)
    said = [record.message for record in caplog.records if "flashrnn computes" in record.message]
    assert len(said) == 2
    assert said[0].startswith(
        "flashrnn computes lstm heads of 6 units in float32 on cpu by its backend cuda (the first "
    )
    assert "the first call with a new number of heads compiles" in said[0]


@pytest.mark.parametrize(("captured", "level"), [(False, logging.WARNING), (True, logging.INFO)])
def test_vanilla_on_a_gpu_is_a_warning_unless_it_is_wanted(
    captured: bool, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "zo_kernels")
    facts = GPU if captured else call.gather(torch.device("cpu"))
    monkeypatch.setattr(call, "gather", lambda device: facts)
    recurrence = Recurrence("lstm", D, captured=captured)
    assert recurrence.backend(torch.device("cuda", 0), torch.float32).name == "vanilla"
    assert [record.levelno for record in caplog.records] == [level]


def test_calls_beyond_flashrnns_offsets_are_refused() -> None:
    steps, batch, heads, head_dim = 1023, 512, 1024, 1
    assert elements("elman", steps, batch, heads, head_dim) == 2**29
    check_size("elman", steps, batch, heads, head_dim)
    check_size("lstm", steps - 1, batch, heads, head_dim)  # of a gate each, four times as many
    for cell in ("lstm", "gru", "slstm"):
        with pytest.raises(
            ValueError, match="too large for flashrnn's 32-bit offsets: use a smaller micro-batch"
        ) as info:
            check_size(cell, steps, batch, heads, head_dim)
        assert "\n" not in str(info.value)
    check_size("elman", 1, 1, 65535, 1)
    with pytest.raises(ValueError, match="flashrnn takes at most 65535 heads in a call, not 65536"):
        check_size("elman", 1, 1, 65536, 1)
    many = 65536
    wide = (
        torch.zeros(1, 1, many, 1, 1),
        torch.zeros(1, 1, many, 1),
        torch.zeros(many, 1, 1, 1),
        torch.zeros(many, 1, 1),
    )
    with pytest.raises(ValueError, match="flashrnn takes at most"):
        Recurrence("elman", 1)(*wide)
