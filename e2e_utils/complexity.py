"""How large a network is and what one event costs."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def complexity(model: nn.Module, *inputs: torch.Tensor) -> dict[str, int]:
    """``parameters`` that are trained, and ``flops`` (2 a multiply-add) of one call.

    ``inputs`` are those of one event, with a batch axis of one. The operations are counted while
    they run; the mode of ``model`` stays as it is.
    """
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*inputs)
    model.train(training)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"parameters": trained, "flops": int(counter.get_total_flops())}
