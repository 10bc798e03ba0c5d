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
