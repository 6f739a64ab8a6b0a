"""One scale for both resolutions: linear at the noise, logarithmic above."""

import torch

ECAL_SCALE = 0.05  # GeV, about the noise of a crystal


def signed_log(x: torch.Tensor) -> torch.Tensor:
    """asinh(x / 0.05 GeV) / 3: linear at the noise, logarithmic above, from 0 to about 3."""
    z = x.abs() / ECAL_SCALE  # not every ONNX runtime has an asinh
    return x.sign() * (z + (z.square() + 1).sqrt()).log() / 3


def signed_exp(v: torch.Tensor) -> torch.Tensor:
    """The inverse, in GeV."""
    return ECAL_SCALE * ((3 * v).exp() - (-3 * v).exp()) / 2
