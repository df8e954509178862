"""Methods that need the training loss: objects around the user's own loop, and masks that stay."""

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
