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
HCAL = 4  # the channel
SOURCES = (
    "barrel.py",
    "boosted.py",
    "boosted_detector.py",
    "boosted_events.py",
    "boosted_kinematics.py",
    "jets_detector.py",
    "jets_events.py",
    "tracker.py",
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
) -> tuple[shards.Arrays, np.ndarray, np.ndarray]:
    """Images of k jets, packed; seeds (k, 2); which of n jets (n,) they are.

    Packed: ``counts`` (k,), ``index`` and ``value`` of active pixels (`boosted_detector.render`).
    Jet i is in the event ``rows[i]``, whose vertex is at ``vertices[rows[i]]`` (cm), around
    ``axes[i]`` (eta, phi).
    """
    counts, seeds = np.zeros(len(rows), np.int64), np.zeros((len(rows), 2), np.int64)
    index, value, fits = render(
        rng,
        events.offsets[rows],
        events.offsets[rows + 1],
        *events[1:],
        *origin,
        np.ascontiguousarray(axes),
        vertices[rows],
        detector,
        tracker,
        counts,
        seeds,
    )
    return {"counts": counts[fits], "index": index, "value": value}, seeds[fits], fits


def unpacked(shard: shards.Arrays, images: np.ndarray | None = None) -> np.ndarray:
    """The images (n, 8, 125, 125) float32 of a shard, or in ``images``, whatever that holds.

    ``images`` may have any strides and any type of numbers.
    """
    n = len(shard["counts"])
    if images is None:
        images = np.zeros((n, *SHAPE), np.float32)
    else:
        images[:] = 0
    place = np.unravel_index(shard["index"], SHAPE)  # channel, row, column
    images[np.repeat(np.arange(n), shard["counts"]), *place] = shard["value"]
    towers = images[:, HCAL, ::TOWER, ::TOWER].copy()
    for row in range(TOWER):
        for column in range(TOWER):
            images[:, HCAL, row::TOWER, column::TOWER] = towers
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
