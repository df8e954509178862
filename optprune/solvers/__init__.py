"""Solvers: one file each, none knows another."""

from optprune.solvers._base import IterativeSolver, Progress, Promise, Solver, solve, solve_all
from optprune.solvers.admm import ADMM
from optprune.solvers.corenet import CoreNet
from optprune.solvers.cutting_plane import CuttingPlane
from optprune.solvers.cvxpy_reference import Cvxpy
from optprune.solvers.edge_minimax import EdgeMinimax
from optprune.solvers.exhaustive import Exhaustive
from optprune.solvers.forward_selection import ForwardSelection
from optprune.solvers.gradual_admm import GradualADMM
from optprune.solvers.iht import IHT
from optprune.solvers.magnitude import Magnitude
from optprune.solvers.net_trim_admm import NetTrimADMM
from optprune.solvers.net_trim_count import solve_for_count
from optprune.solvers.obc import OBC
from optprune.solvers.pivotal_edges import PivotalEdges
from optprune.solvers.portfolio import Portfolio
from optprune.solvers.proximal_l1 import ProximalL1
from optprune.solvers.relu_splicing import ReLUSplicing
from optprune.solvers.ria import RIA
from optprune.solvers.sipp_det import SiPPDet
from optprune.solvers.sipp_hybrid import SiPPHybrid
from optprune.solvers.sipp_rand import SiPPRand
from optprune.solvers.slr import SLR
from optprune.solvers.sparsegpt import SparseGPT
from optprune.solvers.swap_search import SwapSearch
from optprune.solvers.wanda import Wanda

__all__ = [
    "ADMM",
    "IHT",
    "OBC",
    "RIA",
    "SLR",
    "CoreNet",
    "CuttingPlane",
    "Cvxpy",
    "EdgeMinimax",
    "Exhaustive",
    "ForwardSelection",
    "GradualADMM",
    "IterativeSolver",
    "Magnitude",
    "NetTrimADMM",
    "PivotalEdges",
    "Portfolio",
    "Progress",
    "Promise",
    "ProximalL1",
    "ReLUSplicing",
    "SiPPDet",
    "SiPPHybrid",
    "SiPPRand",
    "Solver",
    "SparseGPT",
    "SwapSearch",
    "Wanda",
    "solve",
    "solve_all",
    "solve_for_count",
]
