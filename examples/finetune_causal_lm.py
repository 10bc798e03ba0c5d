"""Fine-tunes a causal language model of Hugging Face transformers with forward passes alone.

    python examples/finetune_causal_lm.py                               # a small GPT-2 with random weights, on bytes
    python examples/finetune_causal_lm.py --pretrained FOLDER --lr 1e-6 --eps 1e-3 --probes-at-once 0

Nothing is back-propagated. A step evaluates the loss at theta + eps p and theta - eps p for a few random probes p. A
small model is evaluated at many of these points at once (`zo.ModulePopulation`), which takes a copy of the parameters
for each. With --probes-at-once 0 they are evaluated one after another, in the memory of one forward pass. FOLDER
contains a model and its tokenizer, as `save_pretrained` writes them. Nothing is downloaded. The script needs
`pip install transformers`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel

import zo_kernels as zo

TEXT = (
    """The tide came in and the tide went out.
The moon looked down and turned about.
The boat came in and the boat went out.
The fisher sang and turned about.
"""
    * 4
)


def random_model(seed: int) -> tuple[PreTrainedModel, list[int]]:
    """A GPT-2 of two layers with random weights, and the text as bytes."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=128,
        n_positions=64,
        n_embd=64,
        n_layer=2,
        n_head=2,
        bos_token_id=None,
        eos_token_id=None,
        loss_type="ForCausalLM",
    )
    return GPT2LMHeadModel(config), list(TEXT.encode("ascii"))


def pretrained_model(folder: str) -> tuple[PreTrainedModel, list[int]]:
    """The model of a folder, in float32, and the text as its tokens."""
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model, tokenizer(TEXT)["input_ids"]


def batches(tokens: list[int], context_length: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Yields random windows of the text, int64 [B, T], for ever."""
    generator = torch.Generator().manual_seed(seed)
    text, window = torch.tensor(tokens), torch.arange(context_length)
    while True:
        starts = torch.randint(len(text) - context_length + 1, (batch_size, 1), generator=generator)
        yield text[starts + window]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pretrained", metavar="FOLDER", help="model and tokenizer to start from (default: random)")
    parser.add_argument("--steps", type=int, default=200, help="updates (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=16, help="probes of a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=0.01, help="learning rate (default: %(default)s)")
    parser.add_argument("--eps", type=float, default=0.001, help="size of a probe (default: %(default)s)")
    parser.add_argument("--context-length", type=int, default=32, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="sequences of a batch (default: %(default)s)")
    parser.add_argument("--probes-at-once", type=int, metavar="N", help="0: one loss at a time (default: what fits)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and probes (default: %(default)s)")
    config = parser.parse_args(arguments)

    model, tokens = random_model(config.seed) if config.pretrained is None else pretrained_model(config.pretrained)
    if len(tokens) < config.context_length:
        parser.error(f"the text has {len(tokens)} tokens: --context-length must not be larger")
    model.eval()  # dropout off: the losses of a probe's two signs are compared
    optimizer = zo.optim.CDRGE(model.parameters(), lr=config.lr, eps=config.eps, probes=config.probes, seed=config.seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {config.probes} probes a step", flush=True)

    def loss_fn(model: torch.nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    population = zo.ModulePopulation(model, loss_fn, probes_at_once=config.probes_at_once or None)
    windows = batches(tokens, config.context_length, config.batch_size, config.seed)
    recent: list[float] = []
    for step, batch in zip(range(1, config.steps + 1), windows, strict=False):
        if config.probes_at_once == 0:
            recent.append(optimizer.step(lambda batch=batch: loss_fn(model, batch)))  # type: ignore[misc]
        else:
            recent.append(optimizer.step(population.on(batch)))
        if step % 10 == 0 or step == config.steps:
            print(f"step {step:4d}  loss {sum(recent) / len(recent):.4f} nats per token", flush=True)
            recent.clear()


if __name__ == "__main__":
    main()
