"""Pythia and FastJet, which nothing but the simulation of collisions needs."""

from e2e_utils.errors import InputError

try:
    import fastjet
    import pythia8mc
except ModuleNotFoundError as error:
    raise InputError(
        f"{error.name}: expected this package, which simulates the stand-in events, found none; "
        "run pip install -r requirements-simulation.txt, or use DATA_SOURCE=official"
    ) from error

__all__ = ["fastjet", "pythia8mc"]
