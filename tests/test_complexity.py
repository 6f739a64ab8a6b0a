"""Parameters and operations of networks."""

import torch
from torch import nn

from e2e_utils.complexity import complexity


def test_counts_are_those_of_the_formulas() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 6, 3))
    model[0].bias.requires_grad_(False)
    model.train()
    found = complexity(model, torch.zeros(1, 2, 5, 6))
    convolution, linear = 2 * 4 * 9, 4 * 5 * 6 * 3
    assert found["parameters"] == convolution + linear + 3
    assert found["flops"] == 2 * (5 * 6 * convolution + linear)
    assert model.training
