"""The operators that stand in a rewritten graph, one file for each family; importing this package registers them."""

from . import attention, linear, moe, norm, rope

__all__ = ["attention", "linear", "moe", "norm", "rope"]
