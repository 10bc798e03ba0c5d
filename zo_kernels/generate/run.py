"""Reads a trained model from the folder of its run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..backends.base import DTYPES
from ..errors import CheckpointError, JournalError, UsageError
from ..extensions import entry_names, is_import, require_allowed
from ..models import MODEL_NAMES, LanguageModel, build_model
from ..run.best import best_step
from ..run.checkpoint import CHECKPOINT_FORMAT
from ..run.config import CONFIG_LIMIT, read_values
from ..run.entries import JOURNAL, TOKENIZER
from ..run.files import open_regular, read_json, read_text
from ..run.folder import VOCABULARY_LIMIT, checkpoint_path, checkpoint_steps, own_checkpoint, vocabulary_digest
from ..run.journal import Journal
from ..run.tensors import check_digest, companion_of, load_tensors
from ..tasks import reads_numbers
from ..tasks.codecs import Bytes, Codec, Subwords
from ..tasks.pair_file import END, SEPARATOR

_NEEDED = ("model", "embed_dim", "hidden_size", "num_heads")
_OPTIONAL = ("num_layers", "layer_norm", "residual", "memory_slots", "memory_width")
"""Null or missing where the model has the default."""
_SWITCHES = ("layer_norm", "residual")

_SHOWN_SYMBOLS = 120
"""Errors show vocabularies up to this size in full."""


@dataclass(frozen=True)
class LoadedRun:
    """What `load_run` returns.

    path: folder of the run.
    model: the model with the run's weights, frozen, on the CPU.
    symbols: the character of each token, or the codec's string for it, [V].
    weights_sha256: SHA-256 of the file of the weights, in hexadecimal. Saved states belong to these weights.
    separator: what stands between a question and its answer; "" if the run knows no such texts.
    end: token that ends an answer; None if there is none. The token of the separator is the one before.
    codec: how text becomes tokens; None if each is a character.
    """

    path: Path
    model: LanguageModel
    symbols: tuple[str, ...]
    weights_sha256: str
    separator: str = ""
    end: int | None = None
    codec: Codec | None = None

    def encode(self, text: str) -> Tensor:
        """Returns the tokens of a text, int64 [1, T].

        Raises UsageError if a character is not in the vocabulary, or a text has no tokens in the codec.
        """
        if self.codec is not None:
            return torch.tensor([self._encode(self.codec, text)], dtype=torch.int64)
        tokens = {symbol: token for token, symbol in enumerate(self.symbols)}
        for symbol in text:
            if symbol not in tokens:
                raise UsageError(
                    f"the character {symbol!r} is not in the vocabulary of {self.path}: {self._describe_vocabulary()}"
                )
        return torch.tensor([[tokens[symbol] for symbol in text]], dtype=torch.int64)

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text of tokens."""
        if self.codec is None:
            return "".join(self.symbols[token] for token in tokens)
        text, part = "", list[int]()
        for token in tokens:
            if self.end is None or token < self.end - 1:
                part.append(token)
            else:
                text += self.codec.decode(part) + self.symbols[token]
                part = []
        return text + self.codec.decode(part)

    def _encode(self, codec: Codec, text: str) -> list[int]:
        parts = text.split(self.separator) if self.separator else [text]
        tokens: list[int] = codec.encode(parts[0]).tolist()
        for part in parts[1:]:
            tokens += [len(codec.symbols), *codec.encode(part).tolist()]
        if not tokens:
            raise UsageError(f"the tokenizer of {self.path} makes no tokens of {text!r}: give another prompt")
        return tokens

    def _describe_vocabulary(self) -> str:
        if len(self.symbols) <= _SHOWN_SYMBOLS:
            return f"it has {''.join(self.symbols)!r}"
        return f"{self.path / 'vocabulary.json'} lists its {len(self.symbols)} characters"


def load_run(path: str | Path, *, step: int | Literal["best"] | None = None, allow_import: bool = False) -> LoadedRun:
    """Loads the model and the vocabulary of a run of `python -m zo_kernels.train`.

    step: takes the weights of this step's checkpoint, which may be "best" in a run with `--keep best`. None: those of
        weights.safetensors, after the last step.
    allow_import: import the model if config.json names one outside zo_kernels, which runs its code.

    Raises UsageError if there is no such folder or checkpoint, if one of its files is missing or not what it should be,
    if the weights don't fit the config, or if the model is one to import and that is not allowed.
    """
    path = Path(path)
    config, vocabulary = read_description(path)
    if reads_numbers(str(config.get("task"))):
        raise UsageError(f"{path} predicts numbers, not text: use python -m zo_kernels.predict")
    codec = _codec(path, config)
    if codec is not None and not _fits(vocabulary, codec):
        raise UsageError(f"{path / 'vocabulary.json'} does not have the tokens of the run's tokenizer")
    if codec is None and not _is_vocabulary(vocabulary):
        raise UsageError(
            f"{path / 'vocabulary.json'} is not a vocabulary of characters, from which alone text is generated without "
            "a tokenizer.json: it must be a JSON list, all different characters"
        )
    model, sha256 = load_model(path, config, vocabulary, step, allow_import=allow_import)
    if config.get("task") == "pairs" and vocabulary[-2:] == [SEPARATOR, END]:
        return LoadedRun(path, model, tuple(vocabulary), sha256, SEPARATOR, len(vocabulary) - 1, codec)
    return LoadedRun(path, model, tuple(vocabulary), sha256, codec=codec)


def read_description(path: Path) -> tuple[dict[str, Any], Any]:
    """The config.json and vocabulary.json of a run. Raises UsageError if they are missing or can't be read."""
    if not os.path.isdir(path):  # False for a name too long, too
        raise UsageError(f"there is no run folder {path}")
    return _read_config(path / "config.json"), _read_json(path / "vocabulary.json")


def load_model(
    path: Path, config: Mapping[str, Any], vocabulary: Sequence[str], step: int | str | None, *, allow_import: bool
) -> tuple[LanguageModel, str]:
    """The model of a run and the SHA-256 of the file of its weights. Arguments and errors are those of `load_run`."""
    file = path / "weights.safetensors" if step is None else _checkpoint(path, config, step)
    sha256, companion, weights = _read_weights(file)
    model = _model(file, path, config, len(vocabulary), weights, allow_import)
    if companion not in (None, vocabulary_digest(vocabulary)):
        raise UsageError(f"{path / 'vocabulary.json'} is not the vocabulary that {file} was saved with: restore it")
    return model, sha256


def _codec(path: Path, config: Mapping[str, Any]) -> Codec | None:
    if config.get("tokenizer") == "bytes":
        return Bytes()
    file = path / TOKENIZER
    if not os.path.lexists(file):
        return None
    try:
        with _read_errors(file):
            return Subwords(read_text(file, VOCABULARY_LIMIT), str(file))
    except ValueError as error:
        raise UsageError(str(error)) from error


def _checkpoint(path: Path, config: Mapping[str, Any], step: int | str) -> Path:
    """The file of the checkpoint of a step, which is whole and belongs to the run."""
    keep = config["keep"] if isinstance(config.get("keep"), str) else None
    try:
        with Journal.open(path / JOURNAL, writable=False) as journal:
            number = step if isinstance(step, int) else best_step(path, journal, keep)
            if number in (kept := checkpoint_steps(path)):
                own_checkpoint(path, journal, number)
                return checkpoint_path(path, number)
    except (JournalError, CheckpointError) as error:
        raise UsageError(str(error)) from error
    those = f"it has those of {', '.join(map(str, kept))}" if kept else "it has none"
    advice = "train with --keep best" if keep is None else "resume it"
    what = f"step {number}" if isinstance(step, int) else f"its best step, {number} ({advice})"
    raise UsageError(f"{path} has no checkpoint of {what}: {those}")


def _model(
    file: Path,
    path: Path,
    config: Mapping[str, Any],
    vocab_size: int,
    weights: Mapping[str, Tensor],
    allow_import: bool,
) -> LanguageModel:
    for name in _NEEDED:
        if name not in config:
            raise UsageError(f"{path / 'config.json'} is not the config of a run: it has no {name}")
    name = config["model"]
    if isinstance(name, str) and is_import(name):
        require_allowed([name], path, allow_import)
    elif name not in MODEL_NAMES and name not in entry_names("zo_kernels.models"):
        raise UsageError(f"{path / 'config.json'} has an unknown model {name!r}: known are {', '.join(MODEL_NAMES)}")
    sizes = {size: config[size] for size in _NEEDED[1:]}
    sizes |= {size: config[size] for size in _OPTIONAL if config.get(size) is not None}
    for size, value in sizes.items():
        if isinstance(value, bool) != (size in _SWITCHES):  # Python takes true and false for numbers
            wanted = "true or false" if size in _SWITCHES else "a number"
            raise UsageError(f"{path / 'config.json'} is not the config of a run: {size} is not {wanted}")
    try:
        numbers = reads_numbers(str(config.get("task")))
        # Nothing is drawn or allocated yet.
        flash = config.get("forward") == "flashrnn"
        model = build_model(name, vocab_size, **sizes, reads_numbers=numbers, flashrnn=flash, device="meta")
    except (ValueError, RuntimeError) as error:  # of torch, if a product of sizes overflows
        raise UsageError(f"{path / 'config.json'} is not the config of a run: {error}") from error

    def misfit(problem: str) -> UsageError:
        return UsageError(f"{file} does not fit config.json and vocabulary.json: {problem}")

    for name, parameter in model.named_parameters():
        if name not in weights:
            raise misfit(f"it has no {name}")
        if weights[name].shape != parameter.shape:
            raise misfit(f"{name} is {list(weights[name].shape)}, not {list(parameter.shape)}")
    if unknown := sorted(weights.keys() - dict(model.named_parameters()).keys()):
        raise misfit(f"the model has no {unknown[0]}")
    dtypes = {weight.dtype for weight in weights.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise misfit(f"it holds numbers of {' and '.join(sorted(map(str, dtypes)))}")
    model.to(dtypes.pop()).to_empty(device="cpu").load_state_dict(weights)
    return model.requires_grad_(False)


def _read_weights(file: Path) -> tuple[str, str | None, dict[str, Tensor]]:
    """SHA-256 of a file of weights or a checkpoint, the digest of the vocabulary if it has that, and the weights."""
    digest = hashlib.sha256()
    with _read_errors(file), open(open_regular(file), "rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    try:
        with _read_errors(file):
            metadata, weights = load_tensors(file)
        check_digest(file, metadata, weights)
    except SafetensorError as error:
        raise UsageError(f"{file} is not a safetensors file ({error})") from error
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    if metadata.get("format") == CHECKPOINT_FORMAT:
        weights = {name.removeprefix("model."): x for name, x in weights.items() if name.startswith("model.")}
    return digest.hexdigest(), companion_of(metadata), weights


@contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        why = "has the run ended, and is it one of python -m zo_kernels.train?"
        if file.name == "vocabulary.json":
            why = (
                "older versions did not write it; train again, or write it as a JSON list, the character of each token"
            )
        raise UsageError(f"{file.parent} has no {file.name}: {why}") from error
    except OSError as error:
        raise UsageError(f"can't read {file}: {error.strerror}") from error


def _read_config(file: Path) -> dict[str, Any]:
    try:
        with _read_errors(file):
            return read_values(read_text(file, CONFIG_LIMIT), str(file))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not JSON ({error})") from error


def _read_json(file: Path) -> Any:
    try:
        with _read_errors(file):
            return read_json(file, VOCABULARY_LIMIT)
    except ValueError as error:
        raise UsageError(f"{file} is not JSON ({error})") from error


def _is_vocabulary(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(symbol, str) and len(symbol) == 1 for symbol in value):
        return False
    return 0 < len(value) == len(set(value))


def _fits(vocabulary: Any, codec: Codec) -> bool:
    """Whether a vocabulary is that of a codec, with or without the two marks of pairs."""
    marks = len(vocabulary) - len(codec.symbols) if isinstance(vocabulary, list) else -1
    return marks in (0, 2) and all(isinstance(symbol, str) for symbol in vocabulary)
