"""The overfitting task: one batch, every place scored on the letter that follows."""

import math

import pytest
import torch

from zo_kernels.tasks import Overfit


def make(**options: int) -> Overfit:
    return Overfit(**{"batch_size": 3, "context_length": 50, "alphabet_size": 26, "seed": 0, **options})


def test_every_step_and_the_validation_have_the_same_batch() -> None:
    task = make()
    tokens, targets = task.batch(0)
    assert tokens.dtype == targets.dtype == torch.int64
    assert tokens.shape == targets.shape == (3, 50)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    assert (targets >= 0).all()
    ((name, (held_out,)),) = task.validation_batches().items()
    assert name == "validation"
    for batch in (task.batch(1), task.batch(2**63), held_out):
        assert torch.equal(batch.tokens, tokens)
        assert torch.equal(batch.targets, targets)
    assert task.test_batches() == {}


def test_letters_are_uniform_and_so_is_chance() -> None:
    task = make(batch_size=100, context_length=400, alphabet_size=5)
    share = torch.bincount(task.batch(0).tokens.flatten(), minlength=5) / 40000
    assert (share - 0.2).abs().max() < 0.01
    assert task.reference_losses == {"chance": math.log(5)}
    assert (task.vocab_size, "".join(task.symbols)) == (5, "abcde")


@pytest.mark.parametrize(("option", "least"), [("batch_size", 1), ("context_length", 1), ("alphabet_size", 2)])
def test_bad_options_are_refused(option: str, least: int) -> None:
    with pytest.raises(ValueError, match=f"^{option} must be at least {least}, not {least - 1}$"):
        make(**{option: least - 1})
