"""Jets in cells of 2 x 2 pixels, and lists of active cells.

Images are (B, C, 125, 125) at high resolution; the low resolution is (B, C, 64, 64), the average of
a cell's four pixels. Cell ``row * 64 + column`` covers pixels 2 row - 1 and 2 row of every column
alike; pixels outside the image are zero. Channels: tracks, ECAL, HCAL, in GeV.
"""

import torch
from torch.nn import functional as F

from e2e_utils.jet_resolution import HIGH, LOW


def to_blocks(high: torch.Tensor) -> torch.Tensor:
    """Images (B, C, 125, 125) -> the four pixels of every low-resolution cell, (B, 4096, C, 4)."""
    blocks = F.pad(high, (1, 2, 1, 2)).view(high.shape[0], -1, LOW, 2, LOW, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(1, 2)


def from_blocks(blocks: torch.Tensor) -> torch.Tensor:
    """The inverse: (B, 4096, C, 4) -> (B, C, 125, 125)."""
    blocks = blocks.view(blocks.shape[0], LOW, LOW, -1, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.flatten(4).flatten(2, 3)[:, :, 1 : HIGH + 1, 1 : HIGH + 1]


FRAME = to_blocks(torch.ones(1, 1, HIGH, HIGH))[0, :, 0]  # (4096, 4): 1 for pixels in the image
INSIDE = FRAME.any(1)  # (4096,): the last row and column of cells have no pixel


def active_cells(low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Jets and numbers of the cells with tracks or ECAL energy; (n,) each."""
    active = (low[:, :2] != 0).any(1).flatten(1) & INSIDE.to(low.device)
    jet, cell = active.nonzero().unbind(1)
    return jet, cell


def windows(
    values: torch.Tensor, jet: torch.Tensor, cell: torch.Tensor, reach: int
) -> torch.Tensor:
    """Windows of (B, C, 64, 64) around cells: (n, C, (2 reach + 1)^2), zero outside."""
    channels, side = values.shape[1], LOW + 2 * reach
    flat = F.pad(values, (reach,) * 4).reshape(-1)
    steps = torch.arange(2 * reach + 1, device=values.device)
    window = (steps[:, None] * side + steps).flatten()
    plane = torch.arange(channels, device=values.device) * side * side
    first = jet * channels * side * side + cell // LOW * side + cell % LOW
    return flat[first[:, None, None] + plane[:, None] + window]


def around(jet: torch.Tensor, cell: torch.Tensor, jets: int) -> torch.Tensor:
    """Rows of the list of cells that are the 3 x 3 around each: (n, 9), n for inactive ones."""
    rows = torch.arange(jet.shape[0], device=jet.device) + 1
    number = torch.zeros(jets, LOW * LOW, dtype=torch.long, device=jet.device)
    number = number.index_put((jet, cell), rows).view(-1, 1, LOW, LOW)
    found = windows(number, jet, cell, 1)[:, 0] - 1
    return torch.where(found < 0, jet.shape[0], found)
