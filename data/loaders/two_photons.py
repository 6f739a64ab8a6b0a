"""The ROOT file of two-photon events that task 2f reads."""

from collections.abc import Sequence
from pathlib import Path

from data.catalog import dataset
from data.loaders.common import SOURCE_WORDS, Paths, source_files
from e2e_utils import paths
from e2e_utils.errors import InputError


def two_photon_file(
    source: str = "auto", profile: str = "quick", path: Paths | None = None
) -> tuple[Path, str]:
    """ROOT file with events of two photons, and its source: "official", "standin" or "file".

    ``source`` and ``profile`` as in `load_electron_photon`; ``path`` names another file, or a URL.
    Raises InputError where the file is missing, or more than one is named.
    """
    catalog = dataset("cmssw_double_photon")
    source, files, _ = source_files(catalog, source, profile, path, _simulate)
    if len(files) > 1 or (source == "file" and not files[0].is_file()):
        found = "none" if len(files) == 1 else f"{len(files)} files"
        raise InputError(f"{files[0]}: expected a ROOT file, found {found}; check DATA=...")
    print(f"Data: {SOURCE_WORDS[source]} ({files[0].name})")
    return files[0], source


def _simulate(catalog: dict, profile: str) -> tuple[Sequence[Path], int]:
    from data.simulate.two_photons import generate

    n_events = catalog["events"][profile]
    return [generate(n_events, paths.STANDIN)], n_events
