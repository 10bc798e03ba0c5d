"""Zero-order optimizers with the interface of torch.optim."""

from .activity import ActivityPerturbation
from .cdrge import CDRGE
from .dense import DENSE_RULES, Adam, DenseRule, Momentum, get_dense_rule
from .zero_order import ZeroOrder

__all__ = [
    "CDRGE",
    "DENSE_RULES",
    "ActivityPerturbation",
    "Adam",
    "DenseRule",
    "Momentum",
    "ZeroOrder",
    "get_dense_rule",
]
