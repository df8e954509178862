"""Matrices of samples that need not be tensors in memory: one concept, a linear map, and its implementations."""

from optprune.numerics.linear._base import LinearMap
from optprune.numerics.linear.columns import ScaledMap, WithOnes
from optprune.numerics.linear.dense import DenseMap, as_map
from optprune.numerics.linear.disk import DiskMap
from optprune.numerics.linear.patches import PatchMap

__all__ = ["DenseMap", "DiskMap", "LinearMap", "PatchMap", "ScaledMap", "WithOnes", "as_map"]
