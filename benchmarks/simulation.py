"""Stand-in images per second and core, physics only and written to HDF5."""

import tempfile
import time

from benchmarks.timing import row
from data.simulate.egamma import generate, simulate_images

IMAGES = 4000
GOAL = 400  # images/s/core, what the project asks of its simulation


def measure() -> list[dict]:
    """Rates of the physics alone and of everything."""
    simulate_images(10, True, 0)  # compiles, or loads the compiled code
    start = time.perf_counter()
    for electron in (False, True):
        simulate_images(IMAGES // 2, electron, 1)
    physics = IMAGES / (time.perf_counter() - start)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        generate(IMAGES, folder, seed=1, scheduler="synchronous")
        written = IMAGES / (time.perf_counter() - start)
    return [
        row("simulation, one core", physics, GOAL, "the goal of 400", "images/s"),
        row(
            "simulation written to HDF5, one core", written, physics, "without writing", "images/s"
        ),
    ]
