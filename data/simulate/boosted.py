"""What the stand-ins of boosted jets share: from collisions to sparse shards of images and back.

The HCAL channel repeats each tower's energy in 25 pixels; shards keep one of them.
"""

import numpy as np

from data.simulate import shards, sources_hash
from data.simulate.boosted_detector import TOWER, Tracker, render
from data.simulate.boosted_events import Displacements
from data.simulate.jets_detector import Detector
from data.simulate.jets_events import Particles

SHAPE = (8, 125, 125)
PIXELS = 125 * 125
HCAL = 4  # the channel
SOURCES = (
    "boosted.py",
    "boosted_detector.py",
    "boosted_events.py",
    "boosted_kinematics.py",
    "detector.py",
    "jets_detector.py",
    "jets_events.py",
)
PER_HIT = ("index", "value")  # entries of a shard that are flat over hits


def simulation_version(*own: str) -> str:
    """Changes with the physics, so that files of an older simulation are made again."""
    return sources_hash(*SOURCES, *own)


def images_of(
    rng: np.random.Generator,
    events: Particles,
    origin: Displacements,
    vertices: np.ndarray,
    rows: np.ndarray,
    axes: np.ndarray,
    detector: Detector,
    tracker: Tracker,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (k, 8, 125, 125), seeds (k, 2), and which of n jets (n,) they are.

    Jet i is in the event ``rows[i]``, whose vertex is at ``vertices[rows[i]]`` (cm), around
    ``axes[i]`` (eta, phi).
    """
    images = np.zeros((len(rows), *SHAPE), np.float32)
    seeds = np.zeros((len(rows), 2), np.int64)
    fits = render(
        rng,
        events.offsets[rows],
        events.offsets[rows + 1],
        *events[1:],
        *origin,
        np.ascontiguousarray(axes),
        vertices[rows],
        detector,
        tracker,
        images,
        seeds,
    )
    return images[fits], seeds[fits], fits


def packed(images: np.ndarray) -> shards.Arrays:
    """Images (n, 8, 125, 125) as ``counts`` (n,), ``index`` and ``value`` of active pixels.

    ``index`` counts within the flattened (8, 125, 125) image; of an HCAL tower only the first pixel
    is kept.
    """
    images = images.copy()
    towers = np.zeros_like(images[:, HCAL])
    towers[:, ::TOWER, ::TOWER] = images[:, HCAL, ::TOWER, ::TOWER]
    images[:, HCAL] = towers
    flat = images.reshape(len(images), -1)  # (n, 8, 125, 125) -> (n, 125000)
    position = np.flatnonzero(flat)
    event = position // flat.shape[1]
    return {
        "counts": np.bincount(event, minlength=len(flat)),
        "index": (position % flat.shape[1]).astype(np.uint32),
        "value": flat.reshape(-1)[position],
    }


def unpacked(shard: shards.Arrays) -> np.ndarray:
    """The images (n, 8, 125, 125) float32 of a shard."""
    n = len(shard["counts"])
    images = np.zeros((n, int(np.prod(SHAPE))), np.float32)
    images[np.repeat(np.arange(n), shard["counts"]), shard["index"]] = shard["value"]
    images = images.reshape(n, *SHAPE)  # (n, 125000) -> (n, 8, 125, 125)
    towers = images[:, HCAL, ::TOWER, ::TOWER]
    images[:, HCAL] = towers.repeat(TOWER, axis=1).repeat(TOWER, axis=2)
    return images


def joined(parts: list[shards.Arrays]) -> shards.Arrays:
    """Jets of several packings one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def rows_of(shard: shards.Arrays, rows: np.ndarray) -> shards.Arrays:
    """The chosen jets of a shard, in this order."""
    counts = shard["counts"][rows]
    starts = (np.cumsum(shard["counts"]) - shard["counts"])[rows]
    target = np.cumsum(counts) - counts
    hits = np.repeat(starts - target, counts) + np.arange(counts.sum())
    return {
        name: values[hits] if name in PER_HIT else values[rows] for name, values in shard.items()
    }
