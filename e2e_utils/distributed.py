"""What training in several processes asks of a network."""

from collections.abc import Callable

from accelerate.utils import broadcast
from torch import nn


class OnePass(nn.Module):
    """``function(network, ...)`` as the forward pass of a module.

    Distributed training averages the gradients of what runs in the forward pass of the module that
    it wraps, once a step. A loss that calls other methods of the network, or the network twice, is
    one such pass.
    """

    def __init__(self, network: nn.Module, function: Callable) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, *arguments: object) -> object:
        return self.function(self.network, *arguments)


def share_buffers(network: nn.Module) -> None:
    """Give every process the buffers of the first; nothing to do in a single one.

    Batch normalisation counts the batches of its own process. Called before validation, so that
    all processes see the same scores and choose the same epoch.
    """
    broadcast(list(network.buffers()))
