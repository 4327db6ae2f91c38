"""Names of tensors in graphs, as `moddit.contract` has them."""

from moddit.contract import constant_name

__all__ = ["constant_name"]
