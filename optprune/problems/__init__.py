"""Problems: frozen mathematical statements; each docstring is the formula."""

from optprune.problems._base import Problem
from optprune.problems.batch import stack, stack_key, unstack
from optprune.problems.edge_sampling import EdgeSampling
from optprune.problems.l0_relu import L0ReLU
from optprune.problems.least_squares import L0LeastSquares
from optprune.problems.net_trim import NetTrim

__all__ = ["EdgeSampling", "L0LeastSquares", "L0ReLU", "NetTrim", "Problem", "stack", "stack_key", "unstack"]
