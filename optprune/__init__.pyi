from . import bounds, certify, errors, testing, training
from .certify import ExactCertificate, certify_exact
from .network import plan
from .network.coreset import Removed, remove_neurons
from .network.damping import HeldOut
from .network.export import export
from .network.held_out import Claims, certified_candidates, held_out
from .network.plan import Plan, Radius
from .network.prune import prune
from .network.report import LayerRecord, NetworkBound, Report
from .network.runs import load
from .network.verify import verify
from .patterns import Blocks, Columns, Fixed, NOfM, Pattern, PerLayer, PerRow, Rows
from .problems import EdgeSampling, L0LeastSquares, NetTrim, Problem, stack, unstack
from .solution import Certificate, Rigor, Solution, Termination
from .solvers import (
    ADMM,
    IHT,
    OBC,
    RIA,
    SLR,
    CoreNet,
    Cvxpy,
    EdgeMinimax,
    Exhaustive,
    GradualADMM,
    Magnitude,
    NetTrimADMM,
    PivotalEdges,
    Portfolio,
    ProximalL1,
    SiPPDet,
    SiPPHybrid,
    SiPPRand,
    Solver,
    SparseGPT,
    SwapSearch,
    Wanda,
    solve,
    solve_all,
    solve_for_count,
)
from .statistics import Samples, Statistics

__version__: str

__all__ = [
    "ADMM",
    "IHT",
    "OBC",
    "RIA",
    "SLR",
    "Blocks",
    "Certificate",
    "Claims",
    "Columns",
    "CoreNet",
    "Cvxpy",
    "EdgeMinimax",
    "EdgeSampling",
    "ExactCertificate",
    "Exhaustive",
    "Fixed",
    "GradualADMM",
    "HeldOut",
    "L0LeastSquares",
    "LayerRecord",
    "Magnitude",
    "NOfM",
    "NetTrim",
    "NetTrimADMM",
    "NetworkBound",
    "Pattern",
    "PerLayer",
    "PerRow",
    "PivotalEdges",
    "Plan",
    "Portfolio",
    "Problem",
    "ProximalL1",
    "Radius",
    "Removed",
    "Report",
    "Rigor",
    "Rows",
    "Samples",
    "SiPPDet",
    "SiPPHybrid",
    "SiPPRand",
    "Solution",
    "Solver",
    "SparseGPT",
    "Statistics",
    "SwapSearch",
    "Termination",
    "Wanda",
    "bounds",
    "certified_candidates",
    "certify",
    "certify_exact",
    "errors",
    "export",
    "held_out",
    "load",
    "plan",
    "prune",
    "remove_neurons",
    "solve",
    "solve_all",
    "solve_for_count",
    "stack",
    "testing",
    "training",
    "unstack",
    "verify",
]
