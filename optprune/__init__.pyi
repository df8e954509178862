from . import bounds, certify, errors
from .patterns import Blocks, Columns, Fixed, NOfM, Pattern, PerLayer, PerRow, Rows
from .problems import L0LeastSquares, NetTrim, Problem, stack, unstack
from .solution import Certificate, Rigor, Solution, Termination
from .solvers import ADMM, Exhaustive, Magnitude, NetTrimADMM, Solver, Wanda, solve, solve_all
from .statistics import Samples, Statistics

__version__: str

__all__ = [
    "ADMM",
    "Blocks",
    "Certificate",
    "Columns",
    "Exhaustive",
    "Fixed",
    "L0LeastSquares",
    "Magnitude",
    "NOfM",
    "NetTrim",
    "NetTrimADMM",
    "Pattern",
    "PerLayer",
    "PerRow",
    "Problem",
    "Rigor",
    "Rows",
    "Samples",
    "Solution",
    "Solver",
    "Statistics",
    "Termination",
    "Wanda",
    "bounds",
    "certify",
    "errors",
    "solve",
    "solve_all",
    "stack",
    "unstack",
]
