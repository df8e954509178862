"""The same run on a device: same counts, same certificates to rounding, the model where it was."""

import pytest
import torch

from optprune.network import plan
from optprune.network.prune import prune
from optprune.solvers import ADMM, Magnitude
from optprune.solvers.net_trim_admm import NetTrimADMM
from tests.network.networks import cnn, data, layer, mlp


@pytest.mark.parametrize("mode", ["parallel", "cascade"])
@pytest.mark.parametrize("solver", [Magnitude(), ADMM()], ids=["magnitude", "admm"])
def test_the_device_changes_no_count_and_no_placement(mode, solver, device):
    for model, x in ((mlp(), data(40, 8)), (cnn(), data(9, 3, 6, 6))):
        made = plan.uniform(model.double(), density=0.4)
        _here, on_cpu = prune(model, [x], made, solver, mode=mode)
        there, on_device = prune(model, [x], made, solver, mode=mode, device=device)
        assert on_device.provenance["device"].startswith(device)
        assert {parameter.device.type for parameter in there.parameters()} == {"cpu"}
        for a, b in zip(on_cpu.layers, on_device.layers, strict=True):
            assert a.kept == b.kept
            assert b.error == pytest.approx(a.error, rel=0.05, abs=1e-9)
            assert all(part.matrix.device.type == "cpu" for part in b.parts)
            certificate = b.certificate
            assert certificate is not None
            assert certificate.objective_error is not None
            assert certificate.lower_bound <= certificate.objective + certificate.objective_error
        assert on_device.network is not None
        assert on_device.network.measured is not None
        assert on_device.network.bound is not None
        assert on_device.network.measured <= on_device.network.bound


def test_a_model_on_the_device_stays_there(device):
    model, x = mlp().to(device), data(40, 8)
    pruned, report = prune(model, [x], plan.uniform(model, density=0.4), Magnitude())
    assert {parameter.device.type for parameter in pruned.parameters()} == {device}
    assert int((layer(pruned, "0").weight != 0).sum()) == report.layers[0].kept


@pytest.mark.gpu
def test_the_random_state_of_the_device_stays():
    model, x = mlp().cuda(), data(40, 8)
    state = torch.cuda.get_rng_state()
    prune(model, [x], plan.uniform(model, density=0.4), Magnitude())
    assert torch.equal(torch.cuda.get_rng_state(), state)


def test_net_trim_on_the_device(device):
    model, x = mlp(), data(40, 8)
    _, report = prune(model, [x], plan.radius(model, 0.1), NetTrimADMM(), device=device)
    for record in report.layers:
        assert record.certificate is not None
        assert record.certificate.relative_gap == pytest.approx(0.0, abs=1e-5)
