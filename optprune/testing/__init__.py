"""For tests and authors of plug-ins: golden instances, hypothesis strategies, the conformance suite of solvers."""

from optprune.testing.conformance import ConformanceError, ConformanceReport, Fault, check_solver
from optprune.testing.instances import Golden, edge_instances, l0_instances, net_trim_instances, rescaled

__all__ = [
    "ConformanceError",
    "ConformanceReport",
    "Fault",
    "Golden",
    "check_solver",
    "edge_instances",
    "l0_instances",
    "net_trim_instances",
    "rescaled",
]
