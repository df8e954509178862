"""Methods that need the training loss: objects around the user's own loop, and masks that stay."""

from optprune.training.admm import ADMM
from optprune.training.freeze import Frozen, freeze, from_torch_prune, frozen_masks, thaw, to_torch_prune
from optprune.training.slr import SLR

__all__ = ["ADMM", "SLR", "Frozen", "freeze", "from_torch_prune", "frozen_masks", "thaw", "to_torch_prune"]
