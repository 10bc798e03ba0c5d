"""The input projections: whichever way is less work, in the layout of the recurrence."""

import pytest
import torch
from torch import Tensor

from tests.models.flashrnn.models import each_flash_cell
from zo_kernels.backends.base import RecurrentWeights
from zo_kernels.models.flashrnn.choice import CELLS
from zo_kernels.models.flashrnn.members import Members
from zo_kernels.models.flashrnn.project import InputProjection

M, V, E, N, D, H = 3, 7, 4, 2, 5, 10


def members_of(cell: str) -> Members:
    shape, generator = CELLS[cell], torch.Generator().manual_seed(0)
    sizes = (
        (M, V, E),
        (M, N, shape.input_rows, D, E),
        (M, N, D, shape.recurrent_rows, D),
        (M, N, shape.biases, D),
        (M, V, H),
        (M, V),
    )
    tensors = [torch.randn(size, generator=generator) for size in sizes]
    return Members(RecurrentWeights.of(cell, [-1] * 6, tensors), tensors)


@each_flash_cell
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_either_way_is_the_product(cell: str, with_bias: bool, dtype: torch.dtype) -> None:
    members, tokens_TB = members_of(cell), torch.randint(V, (4, 3), generator=torch.Generator().manual_seed(1))
    expected = torch.einsum("mtbe,mnide->tbmnid", members.embedding[:, tokens_TB], members.all.input_weight)
    if with_bias:
        expected += members.all.bias[:, :, CELLS[cell].biases - CELLS[cell].input_rows :]
    for num_positions in (V, V + 1):
        project = InputProjection(members, num_positions, dtype, with_bias=with_bias)
        wx = project(tokens_TB)
        assert wx.dtype == dtype
        assert wx.is_contiguous()
        rounding = 2**-8 if dtype == torch.bfloat16 else 0
        torch.testing.assert_close(wx.float(), expected.flatten(2, 3), rtol=rounding, atol=1e-5)


@pytest.mark.parametrize(("num_positions", "rows"), [(3, 3), (V, V), (1000, V)])
def test_no_row_is_projected_in_vain(num_positions: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    projected = []
    original = InputProjection._rows

    def counting(self: InputProjection, embeddings_MYE: Tensor) -> Tensor:
        projected.append(embeddings_MYE.shape[1])
        return original(self, embeddings_MYE)

    monkeypatch.setattr(InputProjection, "_rows", counting)
    InputProjection(members_of("gru"), num_positions, torch.float32, with_bias=False)(
        torch.zeros(num_positions, 1, dtype=torch.int64)
    )
    assert projected == [rows]
