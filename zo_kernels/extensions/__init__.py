"""Classes and functions from outside the package, by "package.module:Name" or by the name of an entry point."""

from .load import ALLOW_IMPORT, call, entry_names, find_class, find_function, is_import, require_allowed

__all__ = ["ALLOW_IMPORT", "call", "entry_names", "find_class", "find_function", "is_import", "require_allowed"]
