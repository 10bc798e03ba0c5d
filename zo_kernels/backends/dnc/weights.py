"""The parameters and states of the models with an external memory, by name, as their forwards take them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

DNC_MODELS = ("dnc", "paper-dnc")
"""The models by name; a position in this tuple is the kernel's model code."""


class DncSizes(NamedTuple):
    """V, E, H, N, W and R."""

    vocab: int
    embed: int
    hidden: int
    slots: int
    width: int
    heads: int

    def weights(self, model: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each parameter, in the order of the model's `named_parameters()`."""
        vocab, embed, hidden, _, width, heads = self
        reads, gates = heads * width, 4 * hidden
        inputs, outputs = embed + reads, hidden + reads
        if model == "dnc":
            interface = reads + 3 * width + 5 * heads + 3
            return {
                "embedding": (vocab, embed),
                "controller_weight": (gates, inputs + hidden),
                "controller_bias": (gates,),
                "interface_weight": (interface, hidden),
                "interface_bias": (interface,),
                "output_weight": (vocab, outputs),
                "output_bias": (vocab,),
            }
        interface = reads + 3 * width + 1
        return {
            "embedding": (vocab, embed),
            "input_norm_weight": (inputs,),
            "input_norm_bias": (inputs,),
            "controller_weight": (gates, inputs + hidden),
            "input_bias": (gates,),
            "recurrent_bias": (gates,),
            "hidden_norm_weight": (hidden,),
            "hidden_norm_bias": (hidden,),
            "interface_weight": (interface, hidden),
            "interface_bias": (interface,),
            "read_key_norm_weight": (width,),
            "read_key_norm_bias": (width,),
            "write_key_norm_weight": (width,),
            "write_key_norm_bias": (width,),
            "memory_norm_weight": (width,),
            "memory_norm_bias": (width,),
            "output_norm_weight": (outputs,),
            "output_norm_bias": (outputs,),
            "output_weight": (vocab, outputs),
            "output_bias": (vocab,),
        }

    def states(self, model: str) -> dict[str, tuple[int, ...]]:
        """Returns the shape of each state of one sequence, in the order of the model's `state_names`."""
        _, _, hidden, slots, width, heads = self
        first = {"h": (hidden,), "c": (hidden,), "memory": (slots, width)}
        last = {"read_vectors": (heads, width)}
        if model == "paper-dnc":
            return {**first, **last}
        between: dict[str, tuple[int, ...]] = {
            "usage": (slots,),
            "precedence": (slots,),
            "link": (slots, slots),
            "write_weights": (slots,),
            "read_weights": (heads, slots),
        }
        return {**first, **between, **last}


class DncWeights(NamedTuple):
    """The parameters of a model with an external memory, and what its sequences start from."""

    model: str
    """One of DNC_MODELS."""
    sizes: DncSizes
    memory: Tensor
    """[N, W], float32 (float64 if the parameters are): the memory that sequences start from. It is no parameter."""
    offsets: tuple[int, ...]
    """Of each parameter in the flat parameter space, -1 for one that is not perturbed."""
    tensors: tuple[Tensor, ...]
    """The parameters, in the order of `DncSizes.weights`."""

    @property
    def output_bias(self) -> Tensor:
        """[V], the last parameter."""
        return self.tensors[-1]


def sizes_of(model: str, tensors: Sequence[Tensor], memory: Tensor) -> DncSizes:
    """Returns the sizes that the parameters of a model and its memory have.

    Raises ValueError for an unknown model, and where the tensors can be those of no model: then one is named.
    """
    if model not in DNC_MODELS:
        raise ValueError(f"unknown model {model!r}: choose one of {', '.join(DNC_MODELS)}")
    names = list(DncSizes(1, 1, 1, 1, 1, 1).weights(model))
    if len(tensors) != len(names):
        raise ValueError(f"the model {model} has {len(names)} weights, but {len(tensors)} were given")
    by_name = dict(zip(names, tensors, strict=True))
    for name in ("embedding", "controller_weight", "interface_weight"):
        if by_name[name].dim() != 2:
            raise ValueError(f"{name} must have two dimensions, not the shape {list(by_name[name].shape)}")
    if memory.dim() != 2 or 0 in memory.shape:
        raise ValueError(f"memory must be [N, W], not of shape {list(memory.shape)}")
    (vocab, embed), (slots, width) = by_name["embedding"].shape, memory.shape
    hidden, inputs = by_name["interface_weight"].shape[1], by_name["controller_weight"].shape[1]
    heads = (inputs - embed - hidden) // width
    sizes = DncSizes(vocab, embed, hidden, slots, width, heads)
    if min(sizes) < 1:
        raise ValueError(f"controller_weight has {inputs} columns, too few for the other weights and the memory")
    for (name, shape), x in zip(sizes.weights(model).items(), tensors, strict=True):
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} must have shape {list(shape)}, not {list(x.shape)}")
    return sizes
