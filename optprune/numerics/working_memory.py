"""How much is worked on at once."""

import torch

ON_DEVICE = 2**30
"""Bytes for the temporaries of a chunk on anything but a CPU."""


def working_memory(asked: int | None, device: torch.device, on_cpu: int = 2**26) -> int:
    """Bytes that the temporaries of a chunk may take.

    Args:
        asked: what the caller gave; None leaves the choice to this function.
        device: where the work is done. On a CPU small chunks are fast, which stay in the cache; elsewhere large ones,
            whose operations are worth a launch.
        on_cpu: the choice for a CPU.
    """
    if asked is not None:
        return asked
    return on_cpu if device.type == "cpu" else ON_DEVICE
