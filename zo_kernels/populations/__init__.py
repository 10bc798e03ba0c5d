"""Populations: the losses of any torch module at many probes at once."""

from .module import LossFunction, ModuleLosses, ModulePopulation

__all__ = ["LossFunction", "ModuleLosses", "ModulePopulation"]
