"""The optimizer among Hugging Face's tools: accelerate's and the hub's files, and PEFT's parameters of two dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import zo_kernels as zo
from zo_kernels.optim import CDRGE

pytestmark = pytest.mark.slow  # for the imports


def net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*[nn.Linear(16, 16) for _ in range(4)])


def step(model: nn.Module, opt: torch.optim.Optimizer) -> None:
    x = torch.linspace(-1, 1, 32 * 16).view(32, 16)
    opt.step(lambda: (model(x) - x).square().mean())


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_accelerate_saves_and_loads_model_and_optimizer(tmp_path: Path) -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = net(0)
    model, opt = accelerator.prepare(model, CDRGE(model.named_parameters(), lr=2**-6, probes=4))
    step(model, opt)
    accelerator.save_state(str(tmp_path))
    step(model, opt)

    other = net(1)
    again = Accelerator(cpu=True)
    other, resumed = again.prepare(other, CDRGE(other.named_parameters(), lr=2**-6, probes=4))
    again.load_state(str(tmp_path))
    assert not same(model, other)
    step(other, resumed)
    assert same(model, other)


def test_every_tensor_is_in_the_files_of_safetensors_and_the_hub(tmp_path: Path) -> None:
    from accelerate import Accelerator
    from huggingface_hub import PyTorchModelHubMixin, save_torch_model
    from safetensors.torch import load_file, save_file, save_model

    class Net(nn.Sequential, PyTorchModelHubMixin):
        """A model that saves itself."""

    torch.manual_seed(0)
    model = Net(*[nn.Linear(16, 16) for _ in range(4)])
    step(model, CDRGE(model.named_parameters(), lr=2**-6, probes=4))
    save_model(model, str(tmp_path / "save_model.safetensors"))
    save_file(model.state_dict(), tmp_path / "save_file.safetensors")
    (tmp_path / "hub").mkdir()
    save_torch_model(model, str(tmp_path / "hub"))
    model.save_pretrained(tmp_path / "mixin")
    Accelerator(cpu=True).save_model(model, str(tmp_path / "accelerate"))
    for name in ("save_model", "save_file", "hub/model", "mixin/model", "accelerate/model"):
        saved = load_file(tmp_path / f"{name}.safetensors")
        assert saved.keys() == model.state_dict().keys(), name
        assert all(torch.equal(saved[key], x) for key, x in model.state_dict().items()), name


@pytest.mark.parametrize("saved", [None, ["lm_head"]])
def test_peft_on_a_bfloat16_model_trains_its_parameters_alone(saved: list[str] | None, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64}
    config = LlamaConfig(**sizes, num_hidden_layers=2, num_attention_heads=2)
    lora = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", modules_to_save=saved)
    model = get_peft_model(LlamaForCausalLM(config).bfloat16(), lora).eval()
    trainable = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    opt = CDRGE(model.named_parameters(), lr=2**-5, eps=2**-6, probes=8)
    tokens = torch.arange(32).view(2, 16)
    with zo.backend("cpu"):
        losses = [opt.step(lambda: model(input_ids=tokens, labels=tokens).loss) for _ in range(30)]
    assert losses[-1] < losses[0]
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in trainable), name
    assert len(set(trainable.values())) == (1 if saved is None else 2)

    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    other = get_peft_model(LlamaForCausalLM(config).bfloat16(), lora).eval()
    other.load_adapter(tmp_path, "default")
    with torch.no_grad():
        assert torch.equal(other(input_ids=tokens).logits, model(input_ids=tokens).logits)
