"""The old place of ``data.loaders``, for notebooks that were published before the loaders moved."""

import sys

from data import loaders
from data.loaders import *  # noqa: F403

for _name in ("jets", "jets8", "top_mass", "two_photons"):
    sys.modules[f"{__name__}.{_name}"] = getattr(loaders, _name)
