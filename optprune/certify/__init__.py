"""Certificates: recomputed facts about weights. Nothing here can see a solver."""

from optprune.certify._base import Checker, certify, checker_for, recheck, register
from optprune.certify.least_squares import LeastSquaresChecker

__all__ = ["Checker", "LeastSquaresChecker", "certify", "checker_for", "recheck", "register"]

register(LeastSquaresChecker())
