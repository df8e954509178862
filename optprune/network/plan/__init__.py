"""Planners: what every layer is pruned to.

`uniform` gives every layer one density or pattern, `radius` one error. The others share one budget of the network
among its layers: `erk`, `global_magnitude`, `owl` and `sensitivity` by a rule, `allocated` by solving the problem of
the least error. In all of them layers are skipped or given their own target by name, with `*` and `?`.
"""

from optprune.network.allocation import Allocation, Optimum
from optprune.network.error_curve import ErrorCurve
from optprune.network.plan.budget import macs
from optprune.network.plan.curves import Weighting, error_curves
from optprune.network.plan.optimal import allocated, from_curves
from optprune.network.plan.rules import radius, uniform
from optprune.network.plan.sensitivities import sensitivity
from optprune.network.plan.shares import erk, global_magnitude, owl
from optprune.network.targets import Plan, Radius, Rule, Target

__all__ = [
    "Allocation",
    "ErrorCurve",
    "Optimum",
    "Plan",
    "Radius",
    "Rule",
    "Target",
    "Weighting",
    "allocated",
    "erk",
    "error_curves",
    "from_curves",
    "global_magnitude",
    "macs",
    "owl",
    "radius",
    "sensitivity",
    "uniform",
]
