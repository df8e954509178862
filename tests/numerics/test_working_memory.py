"""Chunks: as asked, else small on a CPU and large elsewhere."""

import torch

from optprune.certify.least_squares import proves_minorant
from optprune.numerics.working_memory import ON_DEVICE, working_memory
from optprune.testing.instances import data
from tests import stand_in


def test_what_was_asked_for_is_kept_and_else_the_device_decides():
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert working_memory(5, cpu) == working_memory(5, other) == 5
    assert working_memory(None, cpu, 2**20) == 2**20 < working_memory(None, other, 2**20) == ON_DEVICE


def test_a_device_proves_many_rows_in_one_go():
    _, inputs = data(0, 1, 32, 200)
    gram = inputs.mT @ inputs / 200
    gram = (gram + gram.mT) / 2  # to the last bit
    least = torch.linalg.eigvalsh(gram)[0]
    minorant = least * torch.linspace(0.1, 0.9, 30, dtype=torch.float64)[:, None].expand(30, 32)

    def waits(memory: int | None) -> int:
        stand_in.waits.clear()
        assert proves_minorant(gram.to(name), minorant.to(name), memory)
        return sum(stand_in.waits.values())

    with stand_in.stand_in() as name:
        assert waits(None) < 10
        assert waits(1) >= 30
