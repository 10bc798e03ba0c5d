"""The copy task: its batches are those of recorded runs. test_algorithmic.py has what they look like."""

import hashlib
import math

import pytest
import torch

from zo_kernels.tasks import Copy


def test_batches_are_a_function_of_seed_and_step() -> None:
    def make(seed: int) -> Copy:
        return Copy(batch_size=8, max_length=6, alphabet_size=9, seed=seed)

    task, again = make(1), make(1)
    forward = [task.batch(step) for step in range(4)]
    torch.manual_seed(5)
    again.validation_batches()
    for step in (2, 0, 3, 1):
        assert torch.equal(again.batch(step).tokens, forward[step].tokens)
        assert torch.equal(again.batch(step).targets, forward[step].targets)
    others = [make(seed).batch(0) for seed in (2, 2**64 - 1, 2**64 - 2)]
    different = [*forward, *others, *task.validation_batches()["validation"]]
    assert len({tuple(batch.tokens.flatten().tolist()) for batch in different}) == len(different)


@pytest.mark.parametrize(
    ("options", "digest"),
    [
        ((64, 5, 4, 0), "af072bdb8721cca7ee403f12dcc8817fdb01f2c71e0946001b65416ec6c002b2"),
        ((3, 7, 30, 2**64 - 1), "fa1eb2e616f1ad0aa6007fc02f7ddc869f3c36ee89ba87549f15b8be0e803998"),
        ((1, 1, 2, 5), "d3d6dd31e3057854b210a866f3c0ac7217b8fe6de8886bcb5bdd81765bcc1a7f"),
    ],
)
def test_batches_of_a_seed_never_change(options: tuple[int, int, int, int], digest: str) -> None:
    """Recorded runs and their figures are those of these batches."""
    batch_size, max_length, alphabet_size, seed = options
    task = Copy(batch_size=batch_size, max_length=max_length, alphabet_size=alphabet_size, seed=seed)
    batches = [task.batch(step) for step in (0, 1, 2**40)]
    batches += [batch for batches in task.validation_batches().values() for batch in batches]
    data = b"".join(tensor.numpy().tobytes() for batch in batches for tensor in batch)
    assert hashlib.sha256(data).hexdigest() == digest


def test_vocabulary_and_chance() -> None:
    task = Copy(batch_size=1, max_length=1, alphabet_size=4, seed=0)
    assert task.vocab_size == 5
    assert task.reference_losses == {"chance": math.log(4)}
    assert task.test_batches() == {}
