"""The flags of `python -m zo_kernels.train`, grouped by subject as --help shows them. `TrainConfig` has all of them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..backends.base import FORWARDS as OF_BACKENDS
from ..backends.base import PRECISIONS
from ..command_line import choice, option
from ..distributed.replicas import SPLITS
from ..estimators import ESTIMATORS
from ..models import MODEL_NAMES
from ..models.presets import PRESETS
from ..optim.dense import DENSE_RULES
from ..tasks import TASKS
from .bptt import OPTIMIZERS
from .loggers import LOGGERS

SOLVERS = ("zo", "activity", "bptt")
"""Perturbed parameters and perturbed activities, with forward passes alone, and back-propagation through time."""

DEVICES = ("auto", "cpu", "cuda")

FLASHRNN = "flashrnn"
FORWARDS = (*OF_BACKENDS, FLASHRNN)


def _task_option(field: str, metavar: str = "INT", unset: str = "") -> Any:
    """Annotates a field that only some tasks have. --help names these tasks, and the default of the task it is about.

    unset: what to say instead of a default where the task's is None.
    """

    def hint(default: str) -> str:
        tasks = [task for task in TASKS if field in inspect.signature(TASKS[task]).parameters]
        if len(tasks) > len(TASKS) // 2:
            which = f"not for {', '.join(task for task in TASKS if task not in tasks)}"
        else:
            which = f"{', '.join(tasks)} only"
        value = unset if default == "None" else f"default: {default}"
        return f"({which}; {value})" if value else f"({which})"

    return tyro.conf.arg(metavar=metavar, help_behavior_hint=hint)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How long a run is, and where it is computed."""

    steps: int
    """Number of updates of the parameters."""
    batch_size: int
    """Sequences in a batch. All forward passes of a step see the same batch."""
    micro_batch_size: Annotated[int | None, option("INT", "default: the whole batch")] = None
    """Sequences evaluated at a time, if a batch does not fit into memory. The loss is that of the whole batch."""
    seed: int = 0
    """Seed of the initial parameters, the batches and the probes. The same seed gives the same run."""
    validate_every: int = 50
    """Steps between validations."""
    eval_batch_size: Annotated[int | None, option("INT", "default: at least 256")] = None
    """Sequences scored at once at a validation; --micro-batch-size is a default too. Scores differ by rounding only."""
    stop_on_divergence: bool = True
    """Stop the run when its loss has risen far above its best and stays there."""
    device: Annotated[str, choice(DEVICES)] = "auto"
    """Device of the model. auto is cuda if there is a GPU that torch and zo_kernels can use, else cpu."""
    threads: Annotated[int | None, option("INT", "default: one per core")] = None
    """CPU threads. Their number does not change the results of --solver zo."""
    precision: Annotated[str, choice(PRECISIONS)] = "float32"
    """Precision of the products in forward passes. bfloat16 is faster where the processor has it and needs eps 2^-k."""
    backend: Annotated[str, option("NAME")] = "auto"
    """Implementation of the kernels. auto takes the fastest that works; python -m zo_kernels lists them."""
    allow_other_arithmetic: bool = False
    """Resume a run, or share it among processes, even if losses are then rounded differently."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What to learn. Most of these options apply to some tasks only."""

    task: Annotated[str, choice(TASKS)]
    """Letters or digits, one batch by heart (overfit), a text (text, ptb, owt), a table (pairs, series), or yours."""
    context_length: Annotated[int | None, _task_option("context_length")] = None
    """Tokens in a training sequence."""
    max_length: Annotated[int | None, _task_option("max_length")] = None
    """Maximum number of letters or digits in training, or of characters of a pair (longer ones are refused)."""
    longer_length: Annotated[int | None, _task_option("longer_length", unset="default: twice --max-length")] = None
    """Maximum number of letters in the second validation set, whose examples are all longer than --max-length."""
    alphabet_size: Annotated[int | None, _task_option("alphabet_size")] = None
    """Number of different letters or digits."""
    max_repeats: Annotated[int | None, _task_option("max_repeats")] = None
    """Maximum number of times that the letters are repeated."""
    curriculum: Annotated[int | None, _task_option("curriculum")] = None
    """Steps over which the length, or the scored part of the context, grows from 1 to its maximum; 0: none."""


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The text or the table of a task."""

    data: Annotated[Path | None, _task_option("data", "PATH", unset="required")] = None
    """A text (text), the folder of ptb.train.txt (ptb), a .csv file (pairs, series), or a new token file (owt)."""
    validation_data: Annotated[
        Path | None, _task_option("validation_data", "PATH", unset="default: a part of --data")
    ] = None
    """Another text file to validate on. Its characters must all occur in --data."""
    parts: Annotated[str | None, _task_option("parts", "LIST", unset="default: 0.9,0.05,0.05")] = None
    """Shares of the text for training, validation and the test, in this order; they sum to 1."""
    stateful: Annotated[bool, _task_option("stateful", "")] = False
    """Go on in the text where the last batch ended, with the states carried over, instead of at random places."""
    input: Annotated[str | None, _task_option("input", "COLUMN", unset="required, but for series")] = None
    """Column with the texts to read; of series, columns of numbers, with commas between them (default: all others)."""
    target: Annotated[str | None, _task_option("target", "COLUMN", unset="required")] = None
    """Column with the texts to write after them, or with the numbers to predict."""
    eval_tokens: Annotated[int | None, _task_option("eval_tokens", unset="default: 65536, or 4096 for owt")] = None
    """Maximum number of tokens to score of each held-out part of a text, in windows spread over it."""
    dataset: Annotated[str | None, _task_option("dataset", "NAME")] = None
    """Hugging Face dataset with a text column: a name on the Hub, or a folder."""
    tokenizer: Annotated[str | None, _task_option("tokenizer", "NAME", unset="default: characters")] = None
    """characters, bytes, bpe:N (N tokens, learned) or a tokenizer.json; for owt, a name on the Hub or a folder."""
    max_tokens: Annotated[int | None, _task_option("max_tokens")] = None
    """Maximum number of tokens to take from the dataset."""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """The model and its sizes."""

    model: Annotated[str, choice(MODEL_NAMES)] = "lstm"
    """Architecture, or package.module:Class of your own."""
    preset: Annotated[str | None, option("NAME", f"optional; one of {', '.join(PRESETS)}")] = None
    """Take all sizes from a model of the paper, and a learning rate and eps that suit them."""
    embed_dim: int
    """Size of the token embedding."""
    hidden_size: int
    """Size of the hidden state, all heads together. For a DNC, that of its controller."""
    num_heads: int = 1
    """Heads, or blocks of the block-diagonal recurrence; they must divide --hidden-size. For a DNC, its read heads."""
    num_layers: int = 1
    """Recurrent layers, each of --hidden-size (not for DNCs)."""
    layer_norm: bool = False
    """Normalize the output of each layer (not for DNCs)."""
    residual: bool = False
    """Add the input of each layer after the first to its output (not for DNCs)."""
    forward: Annotated[str, choice(FORWARDS)] = "auto"
    """Who computes forward passes: a fused kernel, torch (batched) or FlashRNN. auto takes a kernel if there is one."""
    memory_slots: Annotated[int | None, option("INT", "DNCs only")] = None
    """Rows of the memory."""
    memory_width: Annotated[int | None, option("INT", "DNCs only")] = None
    """Columns of the memory."""


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """How an estimated gradient becomes an update."""

    solver: Annotated[str, choice(SOLVERS)] = "zo"
    """zo: perturbs parameters. activity: perturbs activities (node perturbation). bptt: back-propagation (baseline)."""
    lr: Annotated[float, option("FLOAT|search")]
    """Learning rate of the first step. search tries several in short trial runs and takes half of the best."""
    lr_search: Annotated[bool, tyro.conf.Suppress] = False
    """Search around lr before the run begins, as --lr search does."""
    lr_decay: float = 0.05
    """Factor by which the learning rate falls, linearly, until the end of the run; 1 keeps it constant."""
    weight_decay: float = 0.0
    """Decoupled weight decay: each step also shrinks the parameters by this times the learning rate."""
    transforms: Annotated[str, option("LIST", "default: none")] = ""
    """Transforms of the gradient estimate, such as clip-norm:1,momentum:0.9:8. docs/training.md lists them."""
    dense: Annotated[str | None, choice(DENSE_RULES, "default: none")] = None
    """Update rule that keeps a state as large as the parameters."""
    segment_length: Annotated[int | None, option("INT", "default: the whole context")] = None
    """Tokens read at a time in training, with the states carried over. For bptt, gradients end at segments."""
    max_cosine_distance: Annotated[float | None, option("FLOAT", "default: no filter")] = None
    """Gradient Agreement Filtering: drop micro-batches whose gradient is at a larger cosine distance from the rest."""
    optimizer: Annotated[str, choice(OPTIMIZERS)] = "adamw"
    """Optimizer that takes the gradients (--solver activity and bptt only)."""
    checkpoint_length: Annotated[int | None, option("INT", "default: no gradient checkpointing")] = None
    """Gradient checkpointing: number of tokens whose activations are in memory at a time (--solver bptt only)."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How the gradient is estimated (--solver zo and activity only)."""

    probes: int = 96
    """Random directions per step. Central differences take two forward passes for each."""
    eps: float
    """Step size of the finite differences: how far a probe moves the parameters, or activities, to either side."""
    credit_length: Annotated[int | None, option("INT", "default: all that follow")] = None
    """Number of losses that a step of the context is credited with, from its own on (--solver activity only)."""
    local_gradient: bool = False
    """Compute a step's effect on its own loss exactly instead of estimating it (--solver activity only)."""
    estimator: Annotated[str, choice(ESTIMATORS)] = "cd"
    """Central (cd), forward (fd) or antithetic differences, those divided by the curvature (spsa), or module:Class."""
    distribution: Annotated[str, option("NAME")] = "rademacher"
    """Distribution of the probes: rademacher, normal, uniform, or sparse-K (one element in K = 2, 4, 8, ... moves)."""


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Where a run is written, and which run it continues."""

    out: Annotated[Path | None, option("FOLDER", "default: runs/TASK-DATE-TIME")] = None
    """New or empty folder for the files of the run."""
    resume: Annotated[Path | None, option("RUN", "optional")] = None
    """Folder of a run to continue, as if it had never stopped. It keeps its flags."""
    fork: Annotated[Path | None, option("RUN", "optional")] = None
    """Folder of a run to start a new one from. Its flags are the new one's defaults."""
    fork_step: Annotated[int | str | None, option("INT|best", "default: the last step")] = None
    """Step of the --fork run to start from."""
    allow_import: bool = False
    """Import the code outside zo_kernels that a run to resume or fork names. That runs it: look at its config.json."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """Number of the newest checkpoints to keep. The first one is always kept."""
    keep: Annotated[str | None, option("best[:SET]", "default: none")] = None
    """Also keep a checkpoint of the lowest loss so far, of the set validation or another one: best:longer, say."""
    patience: Annotated[int | None, option("INT", "default: no early stopping")] = None
    """Stop after so many validations in a row without a lower loss than the lowest of the set that --keep names."""
    log: Annotated[tuple[str, ...], choice(LOGGERS, "optional, one or more")] = ()
    """Also log to TensorBoard files in the run's folder, or to Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class ProcessOptions:
    """How the processes of torchrun share the work."""

    split: Annotated[str, choice(SPLITS)] = "probes"
    """What processes split: probes, the micro-batches of --micro-batch-size, or both (--solver zo only)."""
    balance: bool = False
    """Give faster processes a larger share. The results do not change."""
    check_every: int = 100
    """Steps between checks that all processes hold the same parameters."""
    repair: bool = False
    """If a process holds other parameters, rebuild them from the journal and continue (--solver zo only)."""
    timeout: float = 30.0
    """Seconds to wait for another process, plus ten times the longest step; at least 60 until the first step ends."""
