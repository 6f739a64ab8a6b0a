"""Pixels for jets in towers, from patterns of real towers.

What this cannot make is a relation between the pixels of neighbouring towers.
"""

import numpy as np
from scipy.spatial import KDTree

from e2e_utils.sparse_images import SparseImages, concatenate
from task2d_diffusion.codec import is_highest
from task2d_diffusion.planted_defects import Defect
from task2d_diffusion.samples import Sample
from task2d_diffusion.towers import (
    COUNTED,
    D0,
    DZ,
    GRID,
    HCAL,
    N_CHANNELS,
    PIXELS,
    THRESHOLD,
    TOP,
    TOWER,
    TRACK,
    Towers,
    impossible_pixels,
    in_parts,
    ranks,
    to_towers,
    units_of,
)


class TowerLibrary:
    """Patterns (m, 25) of real towers in units of a hit, by channel; those with the largest pixel
    of their channel apart.

    The tower with the pixel of 255 gets a pattern that had one, HCAL towers are even, dz and d0 lie
    on pixels that have a track: nothing impossible comes out.
    """

    def __init__(self, images: SparseImages, rows: np.ndarray) -> None:
        kept = {(c, lead): [] for c in range(N_CHANNELS) for lead in (False, True)}
        for part in in_parts(rows, 50):
            x = images.dense(part).numpy() / units_of(to_towers(images, part).largest)
            x = in_towers(x).reshape(-1, N_CHANNELS, GRID**2, TOWER**2)  # (n, 8, 625, 25)
            top = x.max((2, 3), keepdims=True)
            for (c, lead), found in kept.items():
                has_top = (x[:, c] >= 0.9999 * top[:, c]).any(2)
                found.append(x[:, c][(x[:, c].sum(2) > THRESHOLD) & (has_top == lead)])
        self.patterns = {key: self.ordered(np.concatenate(found)) for key, found in kept.items()}

    @staticmethod
    def ordered(patterns: np.ndarray) -> np.ndarray:
        return patterns[np.argsort(patterns.sum(1), kind="stable")]

    def near(
        self, c: int, lead: bool, wanted: np.ndarray, rng: np.random.Generator, among: int = 10
    ) -> np.ndarray:
        """A pattern (m, 25) for each sum (m,); a single pixel where the library has none."""
        patterns = self.patterns[c, lead]
        if not len(patterns):
            return np.eye(TOWER**2)[rng.integers(TOWER**2, size=len(wanted))] * wanted[:, None]
        sums = patterns.sum(1)
        low, high = np.searchsorted(sums, wanted * 0.9999), np.searchsorted(sums, wanted * 1.0001)
        start = np.where(high - low >= among, low, low - among // 2)
        place = start + (rng.random(len(wanted)) * np.maximum(high - low, among)).astype(int)
        return patterns[place.clip(0, len(patterns) - 1)]

    def pixels(self, part: Towers, rng: np.random.Generator) -> np.ndarray:
        """Towers (n, 8, 25, 25) -> images (n, 8, 125, 125)."""
        w = (part.x / units_of(part.largest)).reshape(len(part.x), N_CHANNELS, -1)  # (n, 8, 625)
        out = np.zeros((*w.shape, TOWER**2), np.float32)
        for c in range(N_CHANNELS):
            limit = np.full(len(w), TOP) if c not in COUNTED else part.largest[:, c - COUNTED[0]]
            first = (ranks(w[:, c]) == 0) & (w[:, c] > 0)
            for lead, chosen in ((True, first), (False, (w[:, c] > 0) & ~first)):
                pattern = self.near(c, lead, w[:, c][chosen], rng)
                if c in (DZ, D0):
                    pattern = on_tracks(pattern, out[:, TRACK][chosen], rng)
                if c == HCAL:
                    pattern = np.ones_like(pattern) * w[:, c][chosen][:, None] / TOWER**2
                most = limit[np.nonzero(chosen)[0]]
                if not lead and c not in COUNTED:
                    pattern = pattern * (w[:, c][chosen] / pattern.sum(1))[:, None]
                pattern = np.minimum(pattern, most[:, None])
                if lead:  # its largest pixel is that of the image
                    pattern[np.arange(len(pattern)), pattern.argmax(1)] = most
                out[:, c][chosen] = pattern
        return in_images(out) * units_of(part.largest)

    def rendered(self, sample: Sample, seed: int) -> SparseImages:
        """Pixel images of the jets of a sample."""
        rng, parts = np.random.default_rng(seed), in_parts(np.arange(len(sample)), 100)
        made = (self.pixels(sample.towers(rows), rng) for rows in parts)
        return concatenate([SparseImages.from_dense(x) for x in made])


class WholeTowers(TowerLibrary):
    """Pixels of all channels of a tower from one real tower, in which the same ones are active.

    Where the library has none such, channel by channel.
    """

    def __init__(self, images: SparseImages, rows: np.ndarray) -> None:
        super().__init__(images, rows)
        rng, found, self.nearest = np.random.default_rng(0), [], {}
        for part in in_parts(rows, 50):
            towers = to_towers(images, part)
            pattern = by_tower(images.dense(part).numpy() / units_of(towers.largest))
            which, alike = described(towers, rng)
            found.append([x[which > 0] for x in (which, alike, pattern)])
        which, alike, pattern = map(np.concatenate, zip(*found, strict=True))
        for key in np.unique(which):
            these, on = which == key, key >> np.arange(N_CHANNELS) & 1 > 0  # (8,) booleans
            tree = KDTree(alike[np.ix_(these, on.repeat(3))])
            self.nearest[key] = on, tree, pattern[np.ix_(these, on)]

    def pixels(self, part: Towers, rng: np.random.Generator) -> np.ndarray:
        """Towers (n, 8, 25, 25) -> images (n, 8, 125, 125)."""
        unit, channel = units_of(part.largest), np.arange(N_CHANNELS)
        most = TOP / unit[..., 0, 0]  # (n, 8)
        # One pixel of 255, but where hits are counted, and in HCAL, whose towers are even.
        limit = (most * np.where(channel < HCAL, 0.98, 1)).repeat(GRID**2, 0)[..., None]
        out = by_tower(super().pixels(part, rng) / unit)  # (625 n, 8, 25)
        w = np.moveaxis(part.x / unit, 1, 3).reshape(-1, N_CHANNELS, 1)
        which, alike = described(part, rng)
        for key, (on, tree, patterns) in self.nearest.items():
            these = which == key
            place = np.ix_(these, on)
            new = patterns[tree.query(alike[np.ix_(these, on.repeat(3))])[1]]
            scale = w[place] / new.sum(2, keepdims=True)
            scale[:, np.isin(channel[on], COUNTED)] = 1  # hits stay whole
            out[place] = np.minimum(new * scale, limit[place])
        out = out.reshape(-1, GRID, GRID, N_CHANNELS, TOWER**2)
        x = in_images(np.moveaxis(out, 3, 1))
        flat = x.reshape(len(x), N_CHANNELS, -1)  # a view
        top = most * flat.any(2)
        np.put_along_axis(flat, flat.argmax(2)[..., None], top[..., None], 2)
        return x * unit


def by_tower(x: np.ndarray) -> np.ndarray:
    """Images (n, 8, 125, 125) -> pixels of each tower (625 n, 8, 25)."""
    return np.moveaxis(in_towers(x), 1, 3).reshape(-1, N_CHANNELS, TOWER**2)


def described(part: Towers, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Active channels of each tower as one number (625 n,); what has to be alike (625 n, 24).

    That is ln(1 + w), being the highest, and ln of the hits behind 255, of each channel. Many
    towers are equal in these: noise decides among them.
    """
    w = part.x / units_of(part.largest)
    hits = np.zeros_like(w)
    hits[:, COUNTED] = np.log(part.largest)[..., None, None]
    alike = np.stack([np.log1p(w), is_highest(w, rng), hits], -1)  # (n, 8, 25, 25, 3)
    alike = np.moveaxis(alike, 1, 3).reshape(-1, 3 * N_CHANNELS)
    which = (alike[:, ::3] > 0) @ (1 << np.arange(N_CHANNELS))
    return which, alike + 0.05 * rng.standard_normal(alike.shape)


def on_tracks(pattern: np.ndarray, track: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of patterns (m, 25), the highest first, on random pixels with a track (m, 25)."""
    rank = ranks(np.where(track > 0, 1 + rng.random(track.shape), 0))
    return np.take_along_axis(-np.sort(-pattern, 1), rank, 1) * (track > 0)


def in_towers(x: np.ndarray) -> np.ndarray:
    """Images (n, 8, 125, 125) -> pixels of each tower (n, 8, 25, 25, 25)."""
    x = x.reshape(-1, N_CHANNELS, GRID, TOWER, GRID, TOWER).transpose(0, 1, 2, 4, 3, 5)
    return x.reshape(-1, N_CHANNELS, GRID, GRID, TOWER**2)


def in_images(x: np.ndarray) -> np.ndarray:
    """The inverse of `in_towers`."""
    x = x.reshape(-1, N_CHANNELS, GRID, GRID, TOWER, TOWER).transpose(0, 1, 2, 4, 3, 5)
    return x.reshape(-1, N_CHANNELS, PIXELS, PIXELS)


def shuffled(images: SparseImages, seed: int, share: float = 1.0) -> SparseImages:
    """The pixels of each tower permuted, in a share of the jets: a judge on pixels must find it."""
    rng, parts = np.random.default_rng(seed), []
    for rows in in_parts(np.arange(len(images)), 100):
        x = in_towers(images.dense(rows).numpy())
        chosen = rng.random(len(x)) < share
        x[chosen] = rng.permuted(x[chosen], axis=4)
        parts.append(SparseImages.from_dense(in_images(x)))
    return concatenate(parts)


def planted_in(images: SparseImages, defect: Defect, seed: int, share: float) -> SparseImages:
    """Images of which a share has a defect."""
    rng, parts = np.random.default_rng(seed), in_parts(np.arange(len(images)), 100)
    made = (defect(images.dense(rows).numpy(), rng, share) for rows in parts)
    return concatenate([SparseImages.from_dense(x) for x in made])


def counted_in(x: SparseImages) -> tuple[np.ndarray, np.ndarray]:
    """Which images break a rule about pixels, and how many pairs touch across borders; (n,) each.

    HCAL, whose towers are even, is left out of the pairs.
    """
    broken, pairs = [], []
    for part in in_parts(np.arange(len(x)), 100):
        image = x.dense(part).numpy()
        broken.append(impossible_pixels(image).any(axis=1))
        on = np.delete(image, HCAL, 1) > 0
        a, b = slice(TOWER - 1, -1, TOWER), slice(TOWER, None, TOWER)  # both sides of borders
        both = on[..., a, :] & on[..., b, :], on[..., a] & on[..., b]  # one below, one beside
        pairs.append(sum(found.sum((1, 2, 3)) for found in both))
    return np.concatenate(broken), np.concatenate(pairs)
