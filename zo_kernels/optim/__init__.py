"""Zero-order optimizers with torch.optim's face."""

from .cdrge import CDRGE
from .dense import DENSE_RULES, Adam, DenseRule
from .zero_order import ZeroOrder

__all__ = ["CDRGE", "DENSE_RULES", "Adam", "DenseRule", "ZeroOrder"]
