"""Net-Trim on a linear map is Net-Trim on the matrix: statement, optimum, certificate, file."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from optprune.certify import certify, recheck
from optprune.errors import InvalidInputError
from optprune.numerics.linear import DenseMap, DiskMap, LinearMap, PatchMap
from optprune.problems import stack
from optprune.problems.net_trim import NetTrim
from optprune.solution import Termination
from optprune.solvers import NetTrimADMM, solve, solve_all

FORMS = {
    "plain": {},
    "strided, padded, grouped": {"stride": 2, "padding": 1, "groups": 2},
    "dilated": {"dilation": (2, 1), "padding": "same"},
    "linear": {"relu": False, "padding_mode": "reflect", "padding": 1},
}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problems(form: str) -> list[NetTrim]:
    groups = FORMS[form].get("groups", 1)
    weight, images, bias = normal(6, 4 // groups, 3, 2), normal(5, 4, 6, 7, seed=1).clamp(min=0), normal(6, seed=2)
    made = NetTrim.from_conv2d(weight, images, 0.0, bias, **FORMS[form])
    return [replace(problem, radius=0.15 * problem.size) for problem in made]


def dense(problem: NetTrim) -> NetTrim:
    return replace(problem, inputs=torch.cat([block for _, block in problem.linear.rows()]))


@pytest.mark.parametrize("form", FORMS)
def test_a_convolution_in_operator_form_has_the_optimum_of_its_patches(form):
    for problem, solution in zip(problems(form), solve_all(problems(form), NetTrimADMM()), strict=True):
        assert solution.termination is Termination.CONVERGED
        assert solution.certificate is not None
        assert solution.certificate.relative_gap <= 1e-6
        assert solution.certificate.primal_residual <= 1e-8
        explicit = solve(dense(problem), NetTrimADMM()).certificate
        assert explicit is not None
        assert solution.certificate.objective == pytest.approx(explicit.objective, rel=1e-8)
        # What is proved on the map is what is proved on the matrix.
        there = recheck(dense(problem), solution.matrix, solution.evidence)
        assert there.lower_bound == pytest.approx(solution.certificate.lower_bound, rel=1e-12)


def test_the_targets_are_the_layers_outputs():
    weight, images, bias = normal(6, 2, 3, 3), normal(5, 4, 6, 7, seed=1), normal(6, seed=2)
    found = NetTrim.from_conv2d(weight, images, 1.0, bias, stride=(2, 1), padding=(0, 1), groups=2)
    outputs = F.conv2d(images, weight, bias, (2, 1), (0, 1), groups=2).clamp(min=0)
    targets = torch.cat([problem.targets for problem in found], 1)
    torch.testing.assert_close(targets, outputs.movedim(1, -1).flatten(0, 2), rtol=1e-12, atol=1e-12)
    assert all(problem.shape == (3, 2 * 9 + 1) for problem in found)
    assert found[0].penalised.tolist() == [True] * 18 + [False]


def test_a_matrix_alone_has_a_bound_that_is_true():
    problem = problems("plain")[0]
    matrix = solve(problem, NetTrimADMM()).matrix
    certificate, _ = certify(problem, matrix)
    assert 0 < certificate.lower_bound <= certificate.objective
    assert certificate.lower_bound == pytest.approx(certify(dense(problem), matrix)[0].lower_bound, rel=1e-6)


def test_rows_in_a_file_give_what_they_give_in_memory(tmp_path):
    weight, inputs, bias = normal(4, 7), normal(60, 7, seed=1), normal(4, seed=2)
    np.save(tmp_path / "rows.npy", inputs.numpy())
    onto = NetTrim.from_layer(weight, DiskMap(tmp_path / "rows.npy"), 2.0, bias)
    there, here = (solve(p, NetTrimADMM()) for p in (onto, NetTrim.from_layer(weight, inputs, 2.0, bias)))
    assert there.certificate is not None
    assert here.certificate is not None
    assert there.certificate.relative_gap <= 1e-8
    assert there.certificate.objective == pytest.approx(here.certificate.objective, rel=1e-10)
    cascaded = NetTrim.cascade(weight, DiskMap(tmp_path / "rows.npy"), inputs @ weight.mT, 1.2, 0.1)
    same = NetTrim.cascade(weight, inputs, inputs @ weight.mT, 1.2, 0.1)
    torch.testing.assert_close(cascaded.radius, same.radius)


@pytest.mark.parametrize("form", ["plain", "strided, padded, grouped"])
def test_a_problem_on_a_map_survives_its_description(form):
    problem = problems(form)[-1]
    again = NetTrim.restore(problem.tensors(), problem.settings())
    assert isinstance(again.inputs, LinearMap)
    matrix = normal(*problem.shape, seed=5)
    assert float(again.objective(matrix)) == float(problem.objective(matrix))
    assert again.violation(matrix) == problem.violation(matrix)


def test_maps_are_not_stacked_and_bad_ones_refused():
    first, second = problems("strided, padded, grouped")
    with pytest.raises(InvalidInputError, match="cannot be stacked"):
        stack([first, second])
    with pytest.raises(InvalidInputError, match="appended once"):
        NetTrim.from_layer(normal(2, 19), PatchMap(normal(2, 2, 5, 5), 3).with_ones(), 1.0, normal(2))
    with pytest.raises(InvalidInputError, match="not constant"):
        NetTrim(DenseMap(normal(8, 3)), normal(8, 2), normal(8, 2) > 0, None, torch.tensor(1.0), torch.arange(3) < 2)
    with pytest.raises(InvalidInputError, match="channels"):
        NetTrim.from_conv2d(normal(4, 2, 3, 3), normal(2, 3, 5, 5), 1.0)
    with pytest.raises(InvalidInputError, match="groups that divide"):
        NetTrim.from_conv2d(normal(4, 2, 3, 3), normal(2, 6, 5, 5), 1.0, groups=3)
