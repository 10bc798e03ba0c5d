"""The examples, run as their docstrings say."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

FOLDER = Path(__file__).parent.parent / "examples"


def losses_of(*arguments: str) -> list[float]:
    """The losses that examples/finetune_causal_lm.py prints."""
    command = [sys.executable, str(FOLDER / "finetune_causal_lm.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return [float(loss) for loss in re.findall(r"loss (\S+) nats per token", result.stdout)]


@pytest.mark.slow
def test_a_causal_lm_learns_and_repeats_itself() -> None:
    losses = losses_of("--steps", "30", "--probes", "8")
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.3
    assert losses_of("--steps", "10", "--probes", "8") == losses[:1]


@pytest.mark.slow
def test_a_causal_lm_is_fine_tuned_from_a_folder(tmp_path: Path) -> None:
    text = "the tide came in and went out moon looked down turned about boat fisher sang . [UNK]"
    vocabulary = {word: token for token, word in enumerate(dict.fromkeys(text.split()))}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    sizes = {"vocab_size": len(vocabulary), "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).bfloat16().save_pretrained(tmp_path)
    losses = losses_of("--pretrained", str(tmp_path), "--steps", "20", "--probes", "8", "--context-length", "12")
    assert len(losses) == 2
    assert losses[1] < losses[0]


@pytest.mark.slow
def test_speakers_are_told_apart_in_six_ways(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    words = [f"word{i}" for i in range(32)]
    vocabulary = {word: token for token, word in enumerate(["[PAD]", "[UNK]", *words])}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=model, **names).save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=34, **sizes)).save_pretrained(tmp_path)
    lines = [" ".join(words[(7 * i + j * j) % 32] for j in range(10)) for i in range(120)]
    play = "\n\n".join(f"SPEAKER {i % 8}:\n{lines[i]}\n{lines[i - 1]}" for i in range(120))
    (tmp_path / "play.txt").write_text(play)
    arguments = [str(tmp_path / "play.txt"), "--model", str(tmp_path), "--steps", "2"]
    command = [sys.executable, str(FOLDER / "classify_speakers.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\| (\w+) \| (\w+) \| ([\d,]+) \| 2 \| [\d.]+% \|", result.stdout, re.MULTILINE)
    assert [row[:2] for row in rows] == [
        (what, by) for by in ("forward", "backward") for what in ("probe", "LoRA", "full")
    ]
    assert len({row[2] for row in rows}) == 3
