"""Populations among other people's code: transformers, PEFT, and several processes."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zo_kernels as zo
from tests.distributed.replicas import run_on_ranks
from tests.flat import flat
from tests.populations.modules import build
from zo_kernels.distributed import Replicas
from zo_kernels.optim import ZeroOrder

pytestmark = pytest.mark.slow  # for the imports, and for the processes


def language_model(kind: str) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads, num_hidden_layers=2)).eval()


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


@pytest.mark.parametrize("kind", ["gpt2", "llama", "lora", "lora on bfloat16"])
def test_transformers(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = language_model("gpt2" if kind == "gpt2" else "llama")
    if kind == "lora on bfloat16":
        model = model.bfloat16()
    if "lora" in kind:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config).eval()  # type: ignore[arg-type]
    tokens = torch.arange(32).view(2, 16) % 50
    batch = {"input_ids": tokens, "attention_mask": (tokens > 2).long(), "labels": tokens}
    opt = ZeroOrder(model, lr=2**-6, eps=2**-6, probes=8)
    for _ in range(3):  # the adapters begin at 0
        opt.step(lambda: loss_of(model, batch))
    expected = opt.estimate(lambda: loss_of(model, batch)).losses
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING, "zo_kernels"):
        warnings.simplefilter("error", UserWarning)  # of torch, that vmap calls an op for each member
        losses = opt.estimate(zo.ModulePopulation(model, loss_of).on(batch)).losses
    assert not [record for record in caplog.records if record.name == "zo_kernels"]
    torch.testing.assert_close(losses, expected, rtol=1e-2 if "bfloat16" in kind else 1e-5, atol=0)
    if "bfloat16" not in kind:
        differences = torch.stack([(x[:, 0] - x[:, 1]) for x in (losses, expected)])
        assert torch.corrcoef(differences)[0, 1] > 0.999


def train(rank: int, split: str, micro_batch_size: int | None) -> tuple[bytes, bytes]:
    """The parameters and the last losses of a few steps."""
    model, loss_fn, batch = build("mlp")
    options: dict[str, Any] = {"replicas": Replicas(split=split)} if torch.distributed.is_initialized() else {}
    opt = ZeroOrder(model, lr=2**-5, eps=2**-6, probes=7, seed=2, **options)
    population = zo.ModulePopulation(model, loss_fn)
    for _ in range(3):
        opt.step(population.on(batch, micro_batch_size=micro_batch_size))
    assert opt.last is not None
    return flat(opt.space).numpy().tobytes(), opt.last.losses.numpy().tobytes()


@pytest.mark.parametrize(("split", "micro_batch_size"), [("probes", None), ("batch", 2), ("both", 1)])
def test_processes_share_the_work(split: str, micro_batch_size: int | None) -> None:
    first, second = run_on_ranks(2, train, split, micro_batch_size)
    assert first == second
    alone = train(0, split, micro_batch_size)
    ours, theirs = (torch.frombuffer(bytearray(losses), dtype=torch.float64) for _, losses in (first, alone))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=0)  # other numbers of probes at once: equal to rounding


def test_gradients_of_micro_batches_agree() -> None:
    model, loss_fn, batch = build("mlp")
    opt = ZeroOrder(model, lr=2**-5, eps=2**-6, probes=7, max_cosine_distance=1.5)
    population = zo.ModulePopulation(model, loss_fn)
    expected = opt.estimate([lambda part=part: loss_fn(model, part) for part in batch.split(2)]).losses  # type: ignore[misc]
    losses = opt.estimate([population.on(part) for part in batch.split(2)]).losses
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=0)
