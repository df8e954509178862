"""Methods that need the training loss: objects around the user's own loop, and masks that stay.

Which one, where training is short: accuracy on MNIST in per cent at density 0.05 in every layer, means of three seeds,
at hard pruning and after one epoch of retraining (`tests/benchmarks/bench_training.py`; LeNet-300-100 with 20,000
images, LeNet-5 with 6,000, three epochs inside of the method, Adam):

    method                          LeNet-300-100 (dense 96.3)    LeNet-5 (dense 97.4)
    layer-wise `op.prune`, freeze        92.2   94.4                  96.7   97.0
    `DropPruning`                        93.5   94.2                  91.3   93.0
    `IHT`                                91.3   92.4                  88.5   90.5
    `Gradual`                            92.9   93.6                  73.3   86.1
    `SLR`                                80.8   91.2                  28.9   89.8
    `ADMM`, constant rho                 68.1   93.0                  31.0   91.7
    `ADMM`, growing rho                  67.1   92.4                  23.0   91.9

`SLR` is ahead of `ADMM` at hard pruning at density 0.1 and, on LeNet-300-100, at 0.05, and behind it after retraining.

The plan matters more than the method. With shares by shape (`plan.erk`) and 12,000 images, one seed, LeNet-5 (dense
98.7) keeps after retraining at densities 0.1 and 0.05: `DropPruning` 98.7, 98.6; `SLR` 98.7, 98.3; `IHT` 98.7, 98.4;
`ADMM` with constant rho 98.7, 98.3, growing 98.6, 98.4; `Gradual` 98.5, 98.0; layer-wise 98.4 (98.5 without), 98.3.
"""

from optprune.training.adapters import lightning_callback, trainer_callback
from optprune.training.admm import ADMM
from optprune.training.drop_pruning import DropPruning
from optprune.training.freeze import Frozen, freeze, from_torch_prune, frozen_masks, thaw, to_torch_prune
from optprune.training.gradual import Gradual
from optprune.training.l0 import IHT, Budget, multiplications
from optprune.training.slr import SLR

__all__ = [
    "ADMM",
    "IHT",
    "SLR",
    "Budget",
    "DropPruning",
    "Frozen",
    "Gradual",
    "freeze",
    "from_torch_prune",
    "frozen_masks",
    "lightning_callback",
    "multiplications",
    "thaw",
    "to_torch_prune",
    "trainer_callback",
]
