"""How the hit pixels of a cell share its energy, and the way back; the notebook has the formulas.

Channels: tracks, whose pixels are at least ``cut`` (GeV), and ECAL, whose pixels may be negative.
The HCAL's pixels follow from the low resolution.
"""

import torch
from torch.nn import functional as F

from e2e_utils.jet_resolution import HIGH
from task2b_superres_gan.cells import FRAME, from_blocks, to_blocks
from task2b_superres_gan.scale import ECAL_SCALE, signed_log

SOURCE = [5 * (pixel // 5) // 2 + 1 for pixel in range(HIGH)]  # a whole cell of the pixel's tower


def coordinates(x: torch.Tensor, cut: float) -> torch.Tensor:
    """Pixels of tracks and ECAL (n, 2, 4) -> y of the hit ones: ln(x - cut) and asinh(x / s)."""
    track = torch.where(x[:, 0] != 0, (x[:, 0] - cut).clamp(min=1e-3), 1.0).log()
    return torch.stack([track, 3 * signed_log(x[:, 1])], 1)


def shared_out(
    energy: torch.Tensor, hits: torch.Tensor, y: torch.Tensor, cut: float
) -> torch.Tensor:
    """Pixels (n, 2, 4) that add up to ``energy`` (n, 2); ``hits`` (n, 2, 4) is 0 or 1."""
    count = hits.sum(2)
    y = y - (hits * y).sum(2, keepdim=True) / count.clamp(min=1).unsqueeze(2)
    y = y.clamp(-9, 9)  # 8 in true jets; a rare draw of 15 would be 80 TeV, and rounding shows
    up = hits * (y * hits).exp()
    total = up.sum(2).clamp(min=1e-12)  # (n, 2)
    free = energy[:, 0] - cut * count[:, 0]
    track = cut * hits[:, 0] + free[:, None] * up[:, 0] / total[:, 0, None]
    y, hit, a = y[:, 1], hits[:, 1], total[:, 1]
    b = (hit * (-y * hit).exp()).sum(1).clamp(min=1e-12)
    e = energy[:, 1] / ECAL_SCALE
    root = e.abs() + (e.square() + a * b).sqrt()  # the sum without cancellation
    w = torch.where(e >= 0, root / a, b / root)[:, None]  # e^t
    x = torch.stack([track, ECAL_SCALE / 2 * hit * (y.exp() * w - (-y).exp() / w)], 1)
    # Rounding is given back evenly, so that the sum is the energy to the last digits.
    return x + hits * ((energy - x.sum(2)) / count.clamp(min=1)).unsqueeze(2)


def legal(
    hits: torch.Tensor,
    y: torch.Tensor,
    energy: torch.Tensor,
    cell: torch.Tensor,
    cut: torch.Tensor,
) -> torch.Tensor:
    """Hits (n, 2, 4) inside the image that the energy can pay for, else that of the largest y."""
    frame = FRAME.to(y)[cell].unsqueeze(1)  # (n, 1, 4)
    hits = hits * frame
    count = hits.sum(2)
    paid = (count > 0) & ((count == 1) | (count * torch.stack([cut, 0 * cut]) <= energy.abs()))
    single = F.one_hot(torch.where(frame > 0, y, -torch.inf).argmax(2), 4).to(hits)
    return torch.where(paid.unsqueeze(2), hits, single) * (energy != 0).unsqueeze(2)


def hcal_image(low: torch.Tensor) -> torch.Tensor:
    """The HCAL at high resolution (B, 1, 125, 125) of (B, 3, 64, 64)."""
    blocks = to_blocks(low[:, 2:][:, :, SOURCE][:, :, :, SOURCE])[:, :, 0]  # (B, 4096, 4)
    energy, frame = 4 * low[:, 2].flatten(1).unsqueeze(2), FRAME.to(low)
    fits = (blocks.sum(2, keepdim=True) - energy).abs() <= 1e-5 * energy.abs()
    even = energy * frame / frame.sum(1, keepdim=True).clamp(min=1)
    return from_blocks(torch.where(fits, blocks, even).unsqueeze(2))
