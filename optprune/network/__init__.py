"""Networks: the only part of the package that knows `torch.nn`."""

from optprune.network import plan
from optprune.network.capture import Captured, capture
from optprune.network.plan import Plan, Radius
from optprune.network.prune import prune
from optprune.network.report import LayerRecord, NetworkBound, Part, Report

__all__ = [
    "Captured",
    "LayerRecord",
    "NetworkBound",
    "Part",
    "Plan",
    "Radius",
    "Report",
    "capture",
    "plan",
    "prune",
]
