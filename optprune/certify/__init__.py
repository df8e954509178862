"""Certificates: recomputed facts about weights. Nothing here can see a solver."""

from optprune.certify._base import Checker, certify, checker_for, recheck, register
from optprune.certify.edge_sampling import EdgeSamplingChecker
from optprune.certify.exact import ExactCertificate, certify_exact
from optprune.certify.l0_relu import L0ReLUChecker
from optprune.certify.least_squares import LeastSquaresChecker
from optprune.certify.net_trim import NetTrimChecker

__all__ = [
    "Checker",
    "EdgeSamplingChecker",
    "ExactCertificate",
    "L0ReLUChecker",
    "LeastSquaresChecker",
    "NetTrimChecker",
    "certify",
    "certify_exact",
    "checker_for",
    "recheck",
    "register",
]

register(LeastSquaresChecker())
register(EdgeSamplingChecker())
register(L0ReLUChecker())
register(NetTrimChecker())
