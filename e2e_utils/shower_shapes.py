"""Shower shapes: what physicists measure of an electron or photon in the calorimeter.

One implementation for all who need them: networks, the trees that they have to beat, and the
comparison of stand-in with real images. It is made of operations that ONNX knows since opset 10, so
that a network may contain it. Names follow CMS where it has one (sigma_ieta_ieta is
``eta_logwidth5``).
"""

import numpy as np
import torch

from e2e_utils.errors import InputError

SIZE = 32  # crystals a side
REACH = 5  # crystals around the highest one that windows may need
CHUNK = 2000  # images at a time
SOFT = 0.0018  # of the energy unit (90 MeV): hits below are mostly noise
LARGEST = 6  # crystals whose shares are shapes
TINY = 1e-9


def energy_shapes(energy: torch.Tensor) -> dict[str, torch.Tensor]:
    """Shapes of images (B, 32, 32) of energy / 50 GeV; each entry (B,).

    Windows lie around the highest crystal, energies in them are shares of the sum. Widths are
    energy-weighted, in crystals: ``*_width`` over the whole image, ``*_width5`` in 5 x 5 crystals,
    ``*_logwidth5`` there with the weights max(0, 4.7 + log(E / E5x5)) of CMS's sigma_ieta_ieta;
    ``*_offset`` is the centre of gravity, from the highest crystal. ``phi_asymmetry`` is the share
    at larger minus at smaller phi. An image without energy has finite shapes.
    """
    flat = energy.flatten(1)  # (B, 32, 32) -> (B, 1024)
    total = flat.sum(1)
    scale = total.clamp(min=TINY)
    row, col = energy.amax(2).argmax(1), energy.amax(1).argmax(1)
    window = around(energy, row, col)  # (B, 11, 11), highest crystal at [5, 5]

    def block(half_rows: int, half_cols: int) -> torch.Tensor:
        rows = slice(REACH - half_rows, REACH + half_rows + 1)
        return window[:, rows, REACH - half_cols : REACH + half_cols + 1]

    def share(part: torch.Tensor) -> torch.Tensor:
        return part.sum((1, 2)) / scale

    five = block(2, 2)
    inside = five / five.sum((1, 2), keepdim=True).clamp(min=TINY)
    weights = (4.7 + inside.clamp(min=TINY).log()).clamp(min=0.0)
    largest = flat.topk(LARGEST, dim=1)[0] / scale[:, None]  # (B, 6)
    left, right = window[:, :, :REACH], window[:, :, REACH + 1 :]
    hit = (energy > 0).to(energy.dtype)
    shapes = {
        "energy_sum": total,
        "seed_row": row.to(energy.dtype),
        "seed_col": col.to(energy.dtype),
    }
    shapes |= {f"e{k + 1}": largest[:, k] for k in range(LARGEST)}
    for name, axis, top in (("eta", 1, row), ("phi", 2, col)):
        mean, width, skewness, kurtosis = moments(energy, axis)
        shapes |= {
            f"{name}_offset": mean - top,
            f"{name}_width": width,
            f"{name}_skewness": skewness,
            f"{name}_kurtosis": kurtosis,
            f"{name}_width5": moments(five, axis)[1],
            f"{name}_logwidth5": moments(weights, axis)[1],
        }
    return shapes | {
        "e3x3": share(block(1, 1)),
        "e5x5": share(five),
        "e7x7": share(block(3, 3)),
        "strip_eta": share(block(2, 0)),
        "strip_phi": share(block(0, 2)),
        "three_rows": share(block(1, REACH)),
        "outer_rows": share(five[:, 0:1]) + share(five[:, 4:5]),
        "phi_asymmetry": share(right) - share(left),
        "phi_asymmetry_abs": (share(right) - share(left)).abs(),
        "next_phi": (window[:, REACH, REACH + 1] - window[:, REACH, REACH - 1]) / scale,
        "next_eta": (window[:, REACH + 1, REACH] - window[:, REACH - 1, REACH]) / scale,
        "left": share(window[:, :, : REACH - 2]),
        "right": share(window[:, :, REACH + 3 :]),
        "outside": total - five.sum((1, 2)),
        "far": 1.0 - share(window),
        "hits": hit.sum((1, 2)),
        "small_hits": (hit * (energy < SOFT).to(energy.dtype)).sum((1, 2)),
    }


def time_shapes(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Energy-weighted mean and spread of the times of images (B, 2, 32, 32), and the highest's."""
    energy, time = images[:, 0].flatten(1), images[:, 1].flatten(1)  # (B, 32, 32) -> (B, 1024)
    scale = energy.sum(1).clamp(min=TINY)
    mean = (energy * time).sum(1) / scale
    square = (energy * (time - mean[:, None]) ** 2).sum(1) / scale
    seed = time.gather(1, energy.argmax(1, keepdim=True))[:, 0]
    return {"time_mean": mean, "time_spread": square.sqrt(), "time_seed": seed}


def shapes_of(images: np.ndarray) -> dict[str, np.ndarray]:
    """`energy_shapes` of an array (n, 32, 32), in double precision; InputError for other shapes."""
    if images.ndim != 3 or images.shape[1:] != (SIZE, SIZE):
        raise InputError(
            f"images: expected shape (n, {SIZE}, {SIZE}), found {images.shape}; pass the energy "
            "channel"
        )
    starts = range(0, len(images), CHUNK)
    parts = [energy_shapes(torch.as_tensor(images[i : i + CHUNK]).double()) for i in starts]
    return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}


def around(energy: torch.Tensor, row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
    """Windows (B, 11, 11) of images (B, 32, 32) around ``row``, ``col`` (B,); zeros outside.

    As a product with two selecting matrices: old runtimes cannot gather by a list of places.
    """
    offset = torch.arange(-REACH, REACH + 1, device=energy.device)
    position = torch.arange(SIZE, device=energy.device)
    rows, cols = (
        (position == centre[:, None, None] + offset[:, None]).to(energy.dtype)
        for centre in (row, col)
    )  # (B, 11, 32)
    return rows @ energy @ cols.transpose(1, 2)


def moments(cells: torch.Tensor, axis: int) -> tuple[torch.Tensor, ...]:
    """Mean, width, skewness and excess kurtosis (B,) along ``axis`` of (B, rows, columns)."""
    position = torch.arange(cells.shape[axis], device=cells.device).to(cells.dtype)
    profile = cells.sum(3 - axis)  # (B, rows, columns) -> (B, positions)
    profile = profile / profile.sum(1, keepdim=True).clamp(min=TINY)
    mean = profile @ position
    centred = position - mean[:, None]  # (B, positions)
    second, third, fourth = ((profile * centred**k).sum(1) for k in (2, 3, 4))
    scale = second.clamp(min=0.05)  # of a single crystal nothing can be said
    return mean, second.clamp(min=1e-12).sqrt(), third / scale**1.5, fourth / scale**2 - 3.0
