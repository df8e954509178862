"""For tests and authors of plug-ins: golden instances, hypothesis strategies, the conformance suite of solvers."""

from optprune.testing.conformance import ConformanceError, ConformanceReport, Fault, check_solver
from optprune.testing.instances import (
    Golden,
    all_instances,
    edge_instances,
    l0_instances,
    net_trim_instances,
    relu_instances,
    rescaled,
)

__all__ = [
    "ConformanceError",
    "ConformanceReport",
    "Fault",
    "Golden",
    "all_instances",
    "check_solver",
    "edge_instances",
    "l0_instances",
    "net_trim_instances",
    "relu_instances",
    "rescaled",
]
