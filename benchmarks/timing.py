"""Side-by-side timing."""

import statistics
import time
from collections.abc import Callable


def side_by_side(functions: dict[str, Callable[[], object]], repeats: int = 5) -> dict[str, float]:
    """Median seconds of each function; their repeats alternate, so that all see the same machine.

    Every function is called once before, for caches and compilation.
    """
    for function in functions.values():
        function()
    seconds = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def row(what: str, ours: float, reference: float | None, against: str, unit: str) -> dict:
    """One line of the report: two rates and their ratio."""
    ratio = None if reference is None else ours / reference
    return {"what": what, "ours": ours, "reference": reference, "against": against,
            "ratio": ratio, "unit": unit}  # fmt: skip
