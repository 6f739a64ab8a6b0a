"""Which task needs which events: the tables that `make data` and `make score` go by."""

from collections.abc import Callable

from data.loaders.common import SOURCE_WORDS, LoadedDataset
from data.loaders.electron_photon import load_electron_photon
from data.loaders.higgs import load_higgs
from data.loaders.jets import load_quark_gluon, load_super_resolution
from data.loaders.jets8 import load_jets8
from data.loaders.mnist import load_digit_images, load_rotated_mnist
from data.loaders.top_mass import load_top_mass
from data.loaders.two_photons import two_photon_file
from e2e_utils.errors import InputError


def prepare(task: str, profile: str, source: str) -> str:
    """Make sure that a task's events are on disk (download, simulate, cache); one-line report.

    The loaders fetch of the official files what the profile takes; the full profile fetches all.
    """
    if task not in PREPARATIONS:
        known = ", ".join(PREPARATIONS)
        raise InputError(f"{task}: expected a task with a loader, found none; known: {known}")
    if (source, profile) == ("official", "full"):
        from data.catalog import select
        from data.download import fetch_all

        if fetch_all(select([task])):
            raise InputError(
                f"{task}: expected every official file, found some missing (see above); try again, "
                "or use DATA_SOURCE=standin"
            )
    return PREPARATIONS[task](source, profile)


def _prepare_cmssw_inference(source: str, profile: str) -> str:
    images = load_electron_photon(source, profile, fresh=True).description
    file, found = two_photon_file(source, profile)
    return f"{images}; {SOURCE_WORDS[found]} ({file.name})"


# What `make score` reads an independent sample with.
LOADERS: dict[str, Callable[..., LoadedDataset]] = {
    "common_task1": load_electron_photon,
    "task2a_higgs_transformer": load_higgs,
    "task2b_superres_gan": load_super_resolution,
    "task2c_sparse_vae": load_jets8,
    "task2d_diffusion": load_jets8,
    "task2e_mass_regression": load_top_mass,
    "task2g_ssl_vit": load_jets8,
    "task2h_graph_jets": load_quark_gluon,
    "task2i_foundation": load_jets8,
    "task2j_symmetry": load_digit_images,
}


def _prepare_jets8(source: str, profile: str) -> str:
    return load_jets8(source, profile).description


def _prepare_unlabelled(source: str, profile: str) -> str:
    """The jets without labels, and where they are stand-ins those that nobody has seen."""
    jets = load_jets8(source, profile, labelled=False)
    if jets.source != "standin":
        return jets.description
    fresh = load_jets8(source, profile, labelled=False, fresh=True)
    return f"{jets.description}; {fresh.description}"


def _prepare_graph_jets(source: str, profile: str) -> str:
    """The jets, and where they are stand-ins those that nobody has seen."""
    jets = load_quark_gluon(source, profile)
    if jets.source != "standin":
        return jets.description
    return f"{jets.description}; {load_quark_gluon(source, profile, fresh=True).description}"


def _prepare_foundation(source: str, profile: str) -> str:
    """The jets of eight channels, and those that the encoder is transferred to."""
    loaders = load_jets8, load_quark_gluon, load_top_mass
    return "; ".join(load(source, profile).description for load in loaders)


# What `make data` does: (source, profile) -> one line that says which events are there.
PREPARATIONS: dict[str, Callable[[str, str], str]] = {
    "common_task1": lambda source, profile: load_electron_photon(source, profile).description,
    "task2a_higgs_transformer": lambda source, profile: load_higgs(source, profile).description,
    "task2b_superres_gan": lambda source, profile: (
        load_super_resolution(source, profile).description
    ),
    "task2c_sparse_vae": _prepare_jets8,
    "task2d_diffusion": _prepare_unlabelled,
    "task2e_mass_regression": lambda source, profile: load_top_mass(source, profile).description,
    "task2f_cmssw_inference": _prepare_cmssw_inference,
    "task2g_ssl_vit": _prepare_jets8,
    "task2h_graph_jets": _prepare_graph_jets,
    "task2i_foundation": _prepare_foundation,
    "task2j_symmetry": lambda source, profile: load_rotated_mnist(source, profile).description,
}
