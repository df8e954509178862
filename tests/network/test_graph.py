"""What follows a layer, from the traced graph or from the order of a sequence."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from optprune.network.graph import followed_by_relu, trace


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.d, self.e, self.f = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.drop = nn.Dropout()

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.drop(self.b(x)).relu()
        y = self.c(x)
        x = torch.relu(y) + y
        x = torch.tanh(self.d(x))
        x = self.e(torch.relu(self.e(x)))
        return self.f(x)


def test_the_graph_tells():
    names = ["a", "b", "c", "d", "e", "f"]
    expected = [True, True, False, False, False, False]
    assert followed_by_relu(Functional(), names) == dict(zip(names, expected, strict=True))


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.ReLU(), nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        if x.sum() > 0:
            x = x * 2
        return self.head(self.body(x))


def test_where_it_cannot_be_traced_the_sequence_tells():
    names = ["body.0", "body.3", "body.5", "head"]
    assert list(followed_by_relu(Untraceable(), names).values()) == [True, False, False, False]
    traced, reason = trace(Untraceable())
    assert traced is None
    assert "forward of Untraceable cannot be traced" in reason
    assert "control flow" in reason


@pytest.mark.parametrize("training", [True, False])
def test_tracing_leaves_the_model_alone(training):
    model = Functional().train(training)
    before = dict(model.named_parameters())
    followed_by_relu(model, ["a"])
    assert model.training == training
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
