"""Zero-order optimizers with torch.optim's face."""

from .cdrge import CDRGE
from .report import StepReport
from .zero_order import ZeroOrder

__all__ = ["CDRGE", "StepReport", "ZeroOrder"]
