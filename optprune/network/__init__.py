"""Networks: the only part of the package that knows `torch.nn`."""

from optprune.network import plan

__all__ = ["plan"]
