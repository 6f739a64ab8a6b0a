"""The ROOT file of two-photon events that task 2f reads."""

from pathlib import Path

from data.catalog import dataset, official_paths
from data.loaders.common import SOURCE_WORDS, check_official
from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.profiles import PROFILES, SOURCES, check_choice


def two_photon_file(
    source: str = "auto", profile: str = "quick", path: str | Path | None = None
) -> tuple[Path, str]:
    """ROOT file with events of two photons, and its source: "official", "standin" or "file".

    ``source`` and ``profile`` as in `load_electron_photon`; ``path`` names another file. Raises
    InputError where the file is missing.
    """
    check_choice("source", source, SOURCES)
    check_choice("profile", profile, PROFILES)
    (official,) = official_paths("cmssw_double_photon")
    if path is not None:
        file, found = Path(path).expanduser(), "file"
        if not file.is_file():
            raise InputError(f"{file}: expected a ROOT file, found none; check DATA=...")
    elif source == "official" or (source == "auto" and official.is_file()):
        file, found = official, "official"
        check_official(official)
    else:
        from data.simulate.two_photons import generate

        n_events = dataset("cmssw_double_photon")["events"][profile]
        file, found = generate(n_events, paths.STANDIN), "standin"
    print(f"Data: {SOURCE_WORDS[found]} ({file.name})")
    return file, found
