"""The Trainer of Hugging Face transformers, with zero-order steps.

from zo_kernels.integrations.transformers import ZOTrainer
"""

from __future__ import annotations

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn

from ..estimators import Estimator
from ..optim import DenseRule, ZeroOrder
from ..optim.modules import NamedParameters
from ..transforms import Transform

try:
    import accelerate  # noqa: F401  (the Trainer needs it, but says so only when it is built)
    from transformers import Trainer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
except ImportError as error:
    raise ImportError(
        f"zo_kernels.integrations.transformers needs transformers and accelerate ({error}): "
        "pip install 'zo_kernels[hf]'"
    ) from error

__all__ = ["ZOTrainer"]

Objective = Callable[[Any, Any], "Tensor | float"]


class _Part(NamedTuple):
    """A micro-batch. labels: how many its loss is the mean of; None if losses of micro-batches are just added."""

    loss: Callable[[], Any]
    labels: int | None


class ZOTrainer(Trainer):
    """`transformers.Trainer` that trains with forward passes alone.

    It takes the Trainer's arguments and those below. Data, collators, evaluation, callbacks, logging, schedulers,
    gradient accumulation, checkpoints and resuming work as in the Trainer; a resumed run has the bits of one that was
    never interrupted. Of `TrainingArguments`, `learning_rate` and `weight_decay` are the optimizer's. `optim`,
    `max_grad_norm` and the settings of Adam have no effect, since there are no gradients.

    A step evaluates the loss of its batch `estimator.forwards(probes)` times, with the model in evaluation mode and
    without autograd. The micro-batches of gradient accumulation count as one batch, and are evaluated one after the
    other at each point. The logged `loss` is the mean of a step's losses, and there is no `grad_norm`.

    probes, eps, estimator, transforms, dense, distribution, mode: as in `zo_kernels.optim.ZeroOrder`. eps stays as it
        is while the scheduler changes the learning rate; None means eps = the learning rate, at every step.
    seed: of the probes. None takes that of `TrainingArguments`.
    objective: what to lower in place of the model's loss, in training and as `eval_loss`. A function of (logits,
        labels), which returns a number or a tensor of one element and needs no gradient; or "accuracy", which lowers
        the share of wrong labels. Labels are those of the batch, a tuple if the model has several. Over micro-batches
        its values are averaged.
    maximize: if the objective is better when it is larger. The logged losses are then its negative.

    An optimizer given as `optimizers=(optimizer, scheduler)` must be a `ZeroOrder`, and the arguments of `ZeroOrder`
    must then be left out. A subclass may override `compute_loss` as in the Trainer.

    Raises ValueError for arguments out of range, several processes or devices, fp16, DeepSpeed and FSDP, TypeError for
    another optimizer, and in training what `ZeroOrder.step` raises.
    """

    optimizer: Any

    def __init__(
        self,
        *args: Any,
        probes: int = 16,
        eps: float | None = 1e-3,
        estimator: Estimator | str = "cd",
        transforms: Transform | str | Sequence[Transform | str] = (),
        dense: DenseRule | str | None = None,
        distribution: str = "rademacher",
        mode: str = "auto",
        seed: int | None = None,
        objective: Objective | str | None = None,
        maximize: bool = False,
        **kwargs: Any,
    ) -> None:
        if not (objective is None or objective == "accuracy" or callable(objective)):
            raise ValueError(f"objective must be 'accuracy' or a function of (logits, labels), not {objective!r}")
        if maximize and not callable(objective):
            raise ValueError("maximize is for a function as the objective: leave it out")
        self._objective: Any = _share_of_wrong_labels if objective == "accuracy" else objective
        self._maximize = maximize
        self._settings: dict[str, Any] = {
            "probes": probes,
            "eps": eps,
            "estimator": estimator,
            "transforms": transforms,
            "dense": dense,
            "distribution": distribution,
            "mode": mode,
            "seed": seed,
        }
        self._collected: list[_Part] = []
        self._unlogged = 0.0
        self._hooks: list[Any] = []
        self._hooked: ZeroOrder | None = None
        super().__init__(*args, **kwargs)
        self._check()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`."""
        self._collected.clear()  # of a step that an exception has cut short
        self._unlogged = 0.0
        return super().train(*args, **kwargs)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """Builds a `ZeroOrder` over the parameters with requires_grad, unless there is one, and returns it.

        Weight decay is for those that the Trainer decays. A subclass may set `self.optimizer` to another `ZeroOrder`.
        """
        if self.optimizer is None:
            module = self.model if model is None else model
            decayed = set(self.get_decay_parameter_names(module)) if self.args.weight_decay else set()
            trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
            parts = [[named for named in trained if (named[0] in decayed) is decays] for decays in (True, False)]
            groups = [
                {"params": NamedParameters(part, module), "weight_decay": weight_decay}
                for part, weight_decay in zip(parts, (self.args.weight_decay, 0.0), strict=True)
                if part
            ]
            if not groups:
                raise ValueError("no parameter of the model has requires_grad: there is nothing to train")
            self.optimizer = ZeroOrder(groups, self.args.learning_rate, **self._settings)
        return self.optimizer

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Keeps a micro-batch for the step, which the Trainer takes when it calls `optimizer.step()`.

        Returns 0, on the device of the Trainer: the losses are known only after the step, and are added then.
        """
        self._hook_into(self.optimizer)
        model.eval()  # dropout off: losses are compared
        batch = self._prepare_inputs(inputs)
        # Whether losses are parts of the batch's already, which only a function of the user's can know.
        is_part = getattr(self, "loss_is_scaled_for_ga", None)  # of newer versions
        if is_part is None:
            is_part = self._objective is None and getattr(self, "compute_loss_func", None) is not None
        kwargs: dict[str, Any] = (
            {"num_items_in_batch": num_items_in_batch} if is_part and num_items_in_batch is not None else {}
        )

        def loss() -> Any:
            with self.compute_loss_context_manager():
                return self.compute_loss(model, {**batch}, **kwargs)  # a copy: compute_loss may take labels out

        self._collected.append(_Part(loss, None if is_part else self._count_labels(batch)))
        return torch.zeros((), device=self.args.device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """As `Trainer.compute_loss`, of the objective if there is one."""
        if self._objective is None:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)
        missing = [name for name in self.label_names if name not in inputs]
        if missing or not self.label_names:
            raise ValueError(
                f"the objective needs labels, but the batch has {sorted(inputs)}: name its labels in "
                "TrainingArguments(label_names=...)"
            )
        labels = tuple(inputs[name] for name in self.label_names)
        outputs = model(**inputs)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
        value = self._objective(logits, labels[0] if len(labels) == 1 else labels)
        if not (value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, numbers.Real)):
            shape = f" of shape {tuple(value.shape)}" if isinstance(value, Tensor) else ""
            raise TypeError(
                "the objective must return a number or a tensor of one element, not a " + type(value).__name__ + shape
            )
        loss = torch.as_tensor(value, dtype=torch.float64, device=self.args.device).reshape(())
        loss = -loss if self._maximize else loss
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As `Trainer.log`, without the norm of gradients that are not there."""
        logs.pop("grad_norm", None)
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Adds the losses of the steps taken to what the Trainer logs; it calls this after each step."""
        tr_loss += self._unlogged
        self._unlogged = 0.0
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """As the Trainer's. Older versions do not let torch 2.6 and newer read the state of NumPy's generator."""
        state = numpy.empty(0, numpy.uint32)  # of what it consists of
        parts: list[Any] = [state.__reduce__()[0], numpy.ndarray, numpy.dtype, type(state.dtype)]
        with torch.serialization.safe_globals(parts):
            super()._load_rng_state(checkpoint)

    def _check(self) -> None:
        """Refuses what can't work now, not at the first step."""
        args = self.args
        if args.world_size * max(args.n_gpu, 1) > 1:
            raise ValueError(
                f"ZOTrainer trains in one process on one device, not on {args.world_size * max(args.n_gpu, 1)}: start "
                "it without torchrun, and choose a GPU with CUDA_VISIBLE_DEVICES"
            )
        if args.fp16:
            raise ValueError("fp16 needs scaled gradients, and there are none: use bf16=True or leave fp16 out")
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            raise ValueError("ZOTrainer keeps a model in one piece: leave DeepSpeed and FSDP out")
        if getattr(self, "optimizer_cls_and_kwargs", None) is not None:
            raise ValueError("ZOTrainer builds a ZeroOrder: leave optimizer_cls_and_kwargs out")
        if self.optimizer is not None:
            if _zero_order(self.optimizer).max_cosine_distance is not None:
                raise ValueError("ZOTrainer makes one batch of the micro-batches: leave max_cosine_distance out")
            defaults = ZOTrainer.__init__.__kwdefaults__ or {}
            changed = [name for name, value in self._settings.items() if value != defaults[name]]
            if changed:
                raise ValueError(f"the optimizer has settings of its own: leave {', '.join(changed)} out")
        if self._settings["seed"] is None:
            self._settings["seed"] = args.seed
        ZeroOrder([nn.Parameter(torch.zeros(1))], args.learning_rate, weight_decay=args.weight_decay, **self._settings)
        if self._objective is _share_of_wrong_labels and self._predicts_next_tokens():
            raise ValueError(
                "accuracy compares logits with labels of the same place, but this model predicts the next token: pass "
                "a function of (logits, labels) that moves them"
            )

    def _count_labels(self, batch: dict[str, Any]) -> int:
        """Number of labels that the mean loss of a micro-batch is over: its weight in that of the batch."""
        labels = batch.get(self.label_names[0]) if len(self.label_names) == 1 else None
        if not isinstance(labels, Tensor):
            return 1
        if labels.ndim > 1 and self._predicts_next_tokens():
            labels = labels[..., 1:]
        return int((labels != -100).sum())

    def _predicts_next_tokens(self) -> bool:
        model = self.accelerator.unwrap_model(self.model)
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # of peft
        return type(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

    def _hook_into(self, wrapped: Any) -> None:
        """Lets the optimizer's `step()` find its closure and leave its loss."""
        optimizer = _zero_order(wrapped)
        if optimizer is self._hooked:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooked = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._give_closure),
            optimizer.register_step_post_hook(self._take_loss),
        ]

    def _give_closure(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(argument is not None for argument in (*args[1:], *kwargs.values())):
            return None  # a closure of somebody else
        parts, self._collected = self._collected, []
        if len(parts) == 1 or not parts:
            return (optimizer, *[part.loss for part in parts]), {}
        total = sum(part.labels or 0 for part in parts)
        weighted = [(part.loss, (part.labels or 0) / total if total else 1.0) for part in parts]

        def whole() -> Tensor:
            """The loss of the batch. Micro-batches without labels have none."""
            losses = [torch.as_tensor(loss(), dtype=torch.float64) * weight for loss, weight in weighted if weight]
            return torch.stack(losses).sum()

        return (optimizer, whole), {}

    def _take_loss(self, optimizer: ZeroOrder, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert optimizer.last is not None
        self._unlogged += optimizer.last.loss


def _share_of_wrong_labels(logits: Tensor, labels: Tensor) -> Tensor:
    """1 - accuracy. Labels of -100 do not count.

    logits: float [..., C]; labels: integers [...]. Raises ValueError for other shapes.
    """
    if not isinstance(logits, Tensor) or not isinstance(labels, Tensor) or logits.shape[:-1] != labels.shape:
        raise ValueError("accuracy needs logits [..., C] and labels [...]: pass a function of (logits, labels)")
    return (logits.argmax(-1) != labels)[labels != -100].double().mean()


def _zero_order(wrapped: Any) -> ZeroOrder:
    """The optimizer that accelerate may have wrapped. Raises TypeError if it is not a `ZeroOrder`."""
    optimizer = getattr(wrapped, "optimizer", wrapped)
    if not isinstance(optimizer, ZeroOrder):
        raise TypeError(
            f"ZOTrainer needs a ZeroOrder, not a {type(optimizer).__name__}: leave the optimizer out, or build "
            "zo_kernels.optim.ZeroOrder"
        )
    return optimizer
