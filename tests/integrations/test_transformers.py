"""ZOTrainer: what the Trainer of transformers does, with zero-order steps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from zo_kernels.integrations.transformers import ZOTrainer  # noqa: E402
from zo_kernels.optim import ZeroOrder  # noqa: E402

pytestmark = pytest.mark.slow  # for the imports

Batch = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def classifier(seed: int = 0, **sizes: Any) -> Any:
    """A BERT with random weights that tells two kinds of sequences apart."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        **{**defaults, **sizes}, intermediate_size=16, max_position_embeddings=8, num_labels=2, pad_token_id=0
    )
    return transformers.BertForSequenceClassification(config)


def sequences(n: int = 32) -> list[Batch]:
    """Their label says whether most tokens are in the upper half of the vocabulary."""
    ids = torch.randint(1, 16, (n, 7), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": ((row >= 8).sum() >= 4).long()} for row in ids]


def arguments(folder: Path, **changed: Any) -> Any:
    quiet: dict[str, Any] = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_steps": 1}
    usual: dict[str, Any] = {"per_device_train_batch_size": 8, "learning_rate": 2e-2, "save_strategy": "no"}
    return transformers.TrainingArguments(str(folder), **{**quiet, **usual, **changed})


def trainer(folder: Path, model: Any = None, *, data: Any = None, callbacks: Any = None, **changed: Any) -> ZOTrainer:
    own: dict[str, Any] = {} if "optimizers" in changed else {"probes": 4}
    own.update({name: changed.pop(name) for name in OWN & changed.keys()})
    return ZOTrainer(
        classifier() if model is None else model,
        arguments(folder, **changed),
        train_dataset=sequences() if data is None else data,
        eval_dataset=sequences(8),
        callbacks=callbacks,
        **own,
    )


OWN = {"probes", "eps", "estimator", "transforms", "dense", "mode", "seed", "objective", "maximize", "optimizers"}


def weights(run: ZOTrainer) -> Batch:
    return {name: x.detach().clone() for name, x in run.model.state_dict().items()}


def same(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def test_a_model_learns_evaluates_logs_and_calls_back(tmp_path: Path) -> None:
    seen = []

    class Watcher(transformers.TrainerCallback):
        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            seen.append(len(seen))

    changed: dict[str, Any] = {"probes": 8, "learning_rate": 0.2, "warmup_steps": 4}
    changed.update(eval_strategy="steps", eval_steps=4)
    run = trainer(tmp_path, data=sequences(8), callbacks=[Watcher()], num_train_epochs=24, **changed)
    before = weights(run)
    result = run.train()
    logs = [entry for entry in run.state.log_history if "learning_rate" in entry]
    losses = [entry["loss"] for entry in logs]
    assert len(logs) == len(seen) == result.global_step == 24
    assert all(entry.keys() >= {"loss", "learning_rate"} and "grad_norm" not in entry for entry in logs)
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert result.training_loss == pytest.approx(sum(losses) / 24, abs=1e-3)
    evaluated = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 6
    assert evaluated[-1] < evaluated[0]
    row = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(weights(run)[row][0], before[row][0])  # of padding
    assert not torch.equal(weights(run)[row][1], before[row][1])


def test_the_first_step_of_a_warm_up_moves_nothing_and_counts(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, warmup_steps=2, weight_decay=0.1)
    run.create_optimizer_and_scheduler(2)
    assert run.optimizer.param_groups[0]["lr"] == 0
    before = weights(run)
    run.train()
    optimizer = getattr(run.optimizer, "optimizer", run.optimizer)
    assert optimizer.steps_taken == 1
    after = weights(run)
    assert all(torch.allclose(after[name], x, atol=1e-6) for name, x in before.items())  # but the grid's rounding
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert optimizer.seed == run.args.seed


class Interruption(transformers.TrainerCallback):
    """Raises after some step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


KINDS: dict[str, dict[str, Any]] = {
    "in place": {"weight_decay": 0.1, "transforms": "momentum:0.9:3"},
    "bfloat16": {"bf16": True, "estimator": "fd"},
    "Adam": {"dense": "adam", "gradient_accumulation_steps": 2},
    "LoRA": {"eps": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_run_resumes_bit_for_bit(kind: str, tmp_path: Path) -> None:
    def build(folder: str, callbacks: Any = None) -> ZOTrainer:
        model = classifier()
        if kind == "bfloat16":
            model = model.bfloat16()
        if kind == "LoRA":
            model = with_lora(model)
        settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3, "warmup_steps": 2, **KINDS[kind]}
        return trainer(tmp_path / folder, model, callbacks=callbacks, **settings)

    whole = build("whole")
    start = weights(whole)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        build("cut", [Interruption(5)]).train()
    resumed = build("cut")
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 8
    assert same(weights(whole), weights(resumed))
    moved = {name for name, x in weights(whole).items() if not torch.equal(x, start[name])}
    trained = {name for name, p in whole.model.named_parameters() if p.requires_grad}
    assert moved <= trained
    assert len(moved) > len(trained) / 2
    key = "learning_rate"
    assert [e[key] for e in whole.state.log_history[:8]] == [e[key] for e in resumed.state.log_history[:8]]


def with_lora(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS"))


def test_micro_batches_make_the_step_of_the_whole_batch(tmp_path: Path) -> None:
    whole = trainer(tmp_path, max_steps=3, per_device_train_batch_size=16)
    whole.train()  # before there is another: accelerate shares the number of micro-batches
    parts = trainer(tmp_path, max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=4)
    parts.train()
    for name, x in weights(whole).items():
        torch.testing.assert_close(weights(parts)[name], x, rtol=1e-3, atol=1e-4, msg=name)
    losses = [[entry["loss"] for entry in run.state.log_history[:3]] for run in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)


def test_micro_batches_count_by_their_labels(tmp_path: Path) -> None:
    """The mean over all tokens, in which a short text counts less than a long one."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    model = transformers.GPT2LMHeadModel(config).eval()
    ids = torch.randint(1, 16, (4, 8), generator=torch.Generator().manual_seed(0))
    labels = ids.masked_fill(torch.arange(8) >= torch.tensor([[2], [8], [1], [5]]), -100)  # one without any
    data = [{"input_ids": x, "labels": y} for x, y in zip(ids, labels, strict=True)]
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=labels).loss)
    changed: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 1}
    run = trainer(tmp_path, model, data=data, eps=1e-6, learning_rate=0.0, mode="shadow", **changed)
    run.train()
    assert run.state.log_history[0]["loss"] == pytest.approx(expected, abs=2e-4)


def test_accuracy_is_an_objective_in_training_and_evaluation(tmp_path: Path) -> None:
    data = sequences(8)
    changed: dict[str, Any] = {"probes": 8, "eps": 0.03, "learning_rate": 0.05, "max_steps": 16}
    run = trainer(tmp_path, objective="accuracy", data=data, **changed)
    ids, labels = torch.stack([row["input_ids"] for row in data]), torch.stack([row["labels"] for row in data])

    def wrong() -> float:
        with torch.no_grad():
            return float((run.model.eval()(input_ids=ids).logits.argmax(-1) != labels).double().mean())

    before = wrong()
    assert run.evaluate()["eval_loss"] == pytest.approx(before)
    run.train()
    assert run.evaluate()["eval_loss"] == pytest.approx(wrong())
    assert wrong() < before


def test_any_function_of_logits_and_labels_is_an_objective(tmp_path: Path) -> None:
    def margin(logits: torch.Tensor, labels: torch.Tensor) -> float:
        return float((logits[:, 1] - logits[:, 0])[labels == 1].mean())

    def opposite(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return -torch.tensor(margin(logits, labels), dtype=torch.float64)

    largest = trainer(tmp_path, objective=margin, maximize=True, max_steps=4)
    smallest = trainer(tmp_path, objective=opposite, max_steps=4)
    for run in (largest, smallest):
        run.train()
    assert same(weights(largest), weights(smallest))
    assert largest.state.log_history[3]["loss"] < largest.state.log_history[0]["loss"]
    with pytest.raises(TypeError, match=r"the objective must return a number .*, not a Tensor of shape \(8, 2\)"):
        trainer(tmp_path, objective=lambda logits, labels: logits, max_steps=1).train()


def test_an_optimizer_of_the_users_own_takes_the_steps(tmp_path: Path) -> None:
    def optimizer(model: Any) -> ZeroOrder:
        return ZeroOrder(model, 2e-2, eps=1e-3, probes=4, seed=42)

    model = classifier()
    given = trainer(tmp_path, model, optimizers=(optimizer(model), None), max_steps=3)
    built = trainer(tmp_path, max_steps=3)
    for run in (given, built):
        run.train()
    assert same(weights(given), weights(built))
    assert given.optimizer.optimizer.steps_taken == 3


def test_a_trainer_trains_again_after_an_interruption(tmp_path: Path) -> None:
    class Cut(transformers.TrainerCallback):
        def on_substep_end(self, *args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    run = trainer(tmp_path, max_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    cut = Cut()
    run.add_callback(cut)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.remove_callback(cut)
    other = trainer(tmp_path, max_steps=2, gradient_accumulation_steps=2, per_device_train_batch_size=4)
    for again in (run, other):
        again.train()
    assert same(weights(run), weights(other))


def test_the_page_about_hugging_face_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by `tests/test_docs.py`, since the import of transformers takes seconds."""
    pytest.importorskip("peft")
    page = Path(__file__).parents[2] / "docs" / "hugging-face.md"
    blocks = re.findall(r"^```py\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "hugging-face.md", "exec"), names)


def test_wrong_arguments_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier()
    adam = torch.optim.AdamW(model.parameters())
    for message, changed in (
        ("probes must be a positive integer, not 0", {"probes": 0}),
        ("objective must be 'accuracy' or a function", {"objective": "f1"}),
        ("maximize is for a function as the objective", {"maximize": True}),
        ("weight_decay must be in", {"weight_decay": -1.0}),
        ("needs a ZeroOrder, not a AdamW", {"optimizers": (adam, None)}),
        ("the optimizer has settings of its own", {"optimizers": (ZeroOrder(model, 1e-2), None), "probes": 8}),
    ):
        with pytest.raises((ValueError, TypeError), match=message) as error:
            trainer(tmp_path, model, **changed)
        assert "\n" not in str(error.value)
    sizes = {"vocab_size": 16, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with pytest.raises(ValueError, match="this model predicts the next token"):
        trainer(tmp_path, transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)), objective="accuracy")
    monkeypatch.setattr(transformers.TrainingArguments, "world_size", 2)
    with pytest.raises(ValueError, match="trains in one process on one device, not on 2"):
        trainer(tmp_path, model)
