"""What a run is made of: the flags of `python -m zo_kernels.train` and their meaning."""

from __future__ import annotations

import inspect
import json
import types
import typing
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..backends.base import PRECISIONS
from ..command_line import cli_value
from ..distributed.replicas import SPLITS
from ..errors import UsageError
from ..estimators import ESTIMATORS
from ..models import MODEL_NAMES
from ..models.presets import PRESETS
from ..optim.dense import DENSE_RULES
from ..tasks import TASKS
from .bptt import OPTIMIZERS
from .loggers import LOGGERS

SOLVERS = ("zo", "bptt")
"""Forward passes alone, or back-propagation through time."""


def _for_some_tasks(field: str, metavar: str = "INT", unset: str = "") -> Any:
    """A flag that only some tasks know: --help names them, and shows the default if it is about one of them.

    unset: what to say of the default if it is None for all tasks.
    """

    def hint(default: str) -> str:
        tasks = [task for task in TASKS if field in inspect.signature(TASKS[task]).parameters]
        if len(tasks) > len(TASKS) // 2:
            others = [task for task in TASKS if task not in tasks]
            known_to = f"not for {', '.join(others)}"
        else:
            known_to = f"{', '.join(tasks)} only"
        said = unset if default == "None" else f"default: {default}"
        return f"({known_to}; {said})" if said else f"({known_to})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train a recurrent network from forward passes alone: CD-RGE, central differences along random probes.

    The defaults shown are those of one task: --task text --help shows those of another.
    """

    resume: Annotated[Path | None, cli_value("RUN", "(optional)")] = None
    """Folder of a run to go on with, as if it had never stopped; its flags are the run's own."""
    fork: Annotated[Path | None, cli_value("RUN", "(optional)")] = None
    """Folder of a run to start a new one from; its flags are the new one's defaults."""
    fork_step: Annotated[int | None, cli_value("INT", "(default: the last one)")] = None
    """Step of that run, any, after which the new one begins."""
    preset: Annotated[str | None, cli_value("NAME", f"(optional: {', '.join(PRESETS)})")] = None
    """Sizes of the paper's models, for the flags that name a size, and a learning rate for them."""

    task: Annotated[str, cli_value("{" + ",".join(TASKS) + "}")]
    """What to learn: a rule, from random letters or digits; one batch by heart; or the next token of a text."""
    data: Annotated[Path | None, _for_some_tasks("data", "PATH", unset="required")] = None
    """A text file (text); the folder of ptb.train.txt, ptb.valid.txt and ptb.test.txt (ptb); or a file to keep tokens
    in, which is made if there is none (owt)."""
    dataset: Annotated[str | None, _for_some_tasks("dataset", "NAME")] = None
    """Hugging Face dataset with a column text, on the Hub or in a folder."""
    tokenizer: Annotated[str | None, _for_some_tasks("tokenizer", "NAME")] = None
    """Hugging Face tokenizer, on the Hub or in a folder."""
    max_tokens: Annotated[int | None, _for_some_tasks("max_tokens")] = None
    """Most tokens to take from the dataset."""
    context_length: Annotated[int | None, _for_some_tasks("context_length")] = None
    """Tokens of a training sequence; a token is a character, but for owt."""
    max_length: Annotated[int | None, _for_some_tasks("max_length")] = None
    """Most letters, or digits of a number, in training."""
    longer_length: Annotated[int | None, _for_some_tasks("longer_length", unset="default: twice --max-length")] = None
    """Most letters in the validation set of longer examples, which begins above --max-length."""
    alphabet_size: Annotated[int | None, _for_some_tasks("alphabet_size")] = None
    """Different letters, or digits, there are."""
    max_repeats: Annotated[int | None, _for_some_tasks("max_repeats")] = None
    """Most times to write the letters."""
    curriculum: Annotated[int | None, _for_some_tasks("curriculum")] = None
    """Steps over which training lengths, or the scored part of the context, grow from 1 to all; 0: none."""

    embed_dim: int
    """Size of a token's embedding."""
    hidden_size: int
    """Size of the hidden state, all heads together; of a DNC, of its controller's."""
    batch_size: int
    """Sequences in a batch; all forward passes of a step see the same batch."""
    lr: Annotated[float, cli_value("FLOAT|search")]
    """Learning rate of the first step; search tries some first and takes the best."""
    eps: float
    """How far a probe moves every parameter, up and down, to measure the slope of the loss."""
    steps: int
    """Updates of the parameters."""

    model: Annotated[str, cli_value("{" + ",".join(MODEL_NAMES) + "}")] = "lstm"
    """What is trained."""
    num_heads: int = 1
    """Blocks of the block-diagonal recurrence, which must divide the hidden size; a DNC's read heads."""
    memory_slots: Annotated[int | None, cli_value("INT", "(DNCs only)")] = None
    """Rows of a DNC's memory."""
    memory_width: Annotated[int | None, cli_value("INT", "(DNCs only)")] = None
    """Columns of a DNC's memory."""

    solver: Annotated[str, cli_value("{" + ",".join(SOLVERS) + "}")] = "zo"
    """Forward passes alone, or back-propagation through time to compare with, which ignores eps and probes."""
    estimator: Annotated[str, cli_value("{" + ",".join(ESTIMATORS) + "}")] = "cd"
    """From losses to a gradient: central or forward differences, or with curvature."""
    probes: int = 96
    """Random directions n of a step, which takes 2n forward passes (cd) and makes one update."""
    distribution: Annotated[str, cli_value("NAME")] = "rademacher"
    """Of a probe's elements: rademacher, normal, uniform, or sparse-K, which moves one parameter in K = 2, 4, 8, ..."""
    transforms: Annotated[str, cli_value("LIST", "(default: none)")] = ""
    """What happens to the estimate, as in clip-norm:1,momentum:0.9:8; docs/training.md lists all."""
    dense: Annotated[str | None, cli_value("{" + ",".join(DENSE_RULES) + "}", "(default: none)")] = None
    """Rule with a state of the parameters' size, for the update along the estimate."""
    max_cosine_distance: Annotated[float | None, cli_value("FLOAT", "(default: no filter)")] = None
    """Gradient Agreement Filtering: leave out micro-batches whose gradient is at a larger cosine distance."""
    optimizer: Annotated[str, cli_value("{" + ",".join(OPTIMIZERS) + "}")] = "adamw"
    """Of --solver bptt."""
    checkpoint_length: Annotated[int | None, cli_value("INT", "(default: none)")] = None
    """Gradient checkpointing of --solver bptt: tokens whose activations are kept at once."""

    lr_search: Annotated[bool, tyro.conf.Suppress] = False
    """Whether `--lr search` was given."""
    lr_decay: float = 0.05
    """Factor that the learning rate falls to over the run, in a straight line; 1 keeps it constant."""
    micro_batch_size: Annotated[int | None, cli_value("INT", "(default: the whole batch)")] = None
    """Sequences evaluated at once, for a batch that does not fit the memory; losses are those of the whole batch."""
    weight_decay: float = 0.0
    """Decoupled weight decay: a step also shrinks the parameters by lr times this."""
    seed: int = 0
    """Seed of the initial parameters, the batches and the probes; the same seed gives the same run."""
    validate_every: int = 50
    """Steps from one validation to the next."""
    stop_on_divergence: bool = True
    """End the run when its loss is far above what it was and stays there."""
    out: Annotated[Path | None, cli_value("FOLDER", "(default: runs/TASK-DATE-TIME)")] = None
    """New or empty folder for the files of the run."""
    checkpoint_every: int = 200
    """Steps from one checkpoint to the next."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints to keep; the first one is kept as well."""
    log: Annotated[tuple[str, ...], cli_value("{" + ",".join(LOGGERS) + "}", "(optional, one or more)")] = ()
    """Where else to log: TensorBoard in the run's folder, Weights & Biases."""
    device: Annotated[str, cli_value("{cpu,cuda}")] = "cpu"
    """Where the model runs."""
    threads: Annotated[int | None, cli_value("INT", "(default: one per core)")] = None
    """CPU threads; the results of forward passes alone do not depend on their number."""
    split: Annotated[str, cli_value("{" + ",".join(SPLITS) + "}")] = "probes"
    """What the processes of torchrun share out: the probes, the micro-batches of --micro-batch-size, or both."""
    balance: bool = False
    """Deal shares by the processes' measured speed; the results do not depend on it."""
    check_every: int = 100
    """Steps from one comparison of the processes' parameters to the next."""
    repair: bool = False
    """When they differ, rebuild them from the journal and go on, instead of ending with an error."""
    timeout: float = 30.0
    """Seconds to wait for another process, beyond ten times the longest step, before giving it up."""
    precision: Annotated[str, cli_value("{" + ",".join(PRECISIONS) + "}")] = "float32"
    """Of the forward passes' products: bfloat16 is faster on a processor that has it, and needs an eps of 2^-k."""
    backend: Annotated[str, cli_value("NAME")] = "auto"
    """Kernels for the probes: auto takes the fastest that works, python -m zo_kernels lists them."""


TASK_OPTIONS = (
    "data",
    "dataset",
    "tokenizer",
    "max_tokens",
    "context_length",
    "max_length",
    "longer_length",
    "alphabet_size",
    "max_repeats",
    "curriculum",
)
"""Fields that are for some tasks only."""


def lr_at(config: TrainConfig, step: int) -> float:
    """The learning rate of a step, numbered from 0: a straight line from lr to lr * lr_decay over the run."""
    return config.lr * (1 + (config.lr_decay - 1) * min(step, config.steps) / config.steps)


def task_options(config: TrainConfig) -> dict[str, Any]:
    """The keywords that the constructor of the config's task takes: each is named like its flag."""
    return {name: getattr(config, name) for name in inspect.signature(TASKS[config.task]).parameters}


_RENAMED = {"gaf": "max_cosine_distance", "shard": "split", "heal": "repair"}
"""Fields of 0.1, whose runs are still read, by the names they have now."""


def as_json(config: TrainConfig) -> str:
    """The text of config.json: every field."""
    return json.dumps(asdict(config), indent=2, default=str) + "\n"


def read_config(run: Path) -> TrainConfig:
    """The config of a run's folder. Raises UsageError if there is none, or it is that of another version."""
    path = run / "config.json"
    if not run.is_dir():
        raise UsageError(f"there is no run folder {run}")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{run} is not the folder of a run: can't read {path.name}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"{path} is not JSON ({error})") from error
    hints = typing.get_type_hints(TrainConfig)
    if isinstance(values, dict):
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
    if not isinstance(values, dict) or values.keys() != hints.keys():
        raise UsageError(f"{path} is not the config of a run, or of another version of zo_kernels")
    names = [field.name for field in fields(TrainConfig)]
    return TrainConfig(**{name: _from_json(values[name], hints[name]) for name in names})


def _from_json(value: Any, hint: Any) -> Any:
    """A value as it was before JSON, which knows neither paths nor tuples."""
    if value is None:
        return None
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if Path in options:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
