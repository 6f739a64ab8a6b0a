"""Which task needs which events: the tables that `make data` and `make score` go by."""

from collections.abc import Callable
from functools import partial

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


def _with_fresh(load: Callable[..., LoadedDataset], source: str, profile: str) -> str:
    """A task's jets, and where they are stand-ins those that nobody has seen."""
    jets = load(source, profile)
    if jets.source != "standin":
        return jets.description
    return f"{jets.description}; {load(source, profile, fresh=True).description}"


def _prepare_unlabelled(source: str, profile: str) -> str:
    """The jets without labels and, where they are stand-ins, those that no training has seen."""
    jets = load_jets8(source, profile, labelled=False)
    if jets.source != "standin":
        return jets.description
    return f"{jets.description}; {load_jets8('standin', profile, fresh=True).description}"


def _prepare_foundation(source: str, profile: str) -> str:
    """The jets of task 2g, and some thousand of those that the encoder is transferred to."""
    few = "smoke" if profile == "smoke" else "quick"
    others = (load(source, few).description for load in (load_quark_gluon, load_top_mass))
    return "; ".join([_with_fresh(load_jets8, source, profile), *others])


def _prepare_top_mass(source: str, profile: str) -> str:
    """The jets that train and, of stand-ins, those that test, in this and a harsher detector."""
    jets = load_top_mass(source, profile)
    if jets.source != "standin":
        return jets.description
    tests = [
        load_top_mass("standin", profile, conditions=conditions, fresh=True)
        for conditions in ("nominal", "harsh")
    ]
    return "; ".join(sample.description for sample in (jets, *tests))


# What `make data` does: (source, profile) -> one line that says which events are there.
PREPARATIONS: dict[str, Callable[[str, str], str]] = {
    "common_task1": lambda source, profile: load_electron_photon(source, profile).description,
    "task2a_higgs_transformer": lambda source, profile: load_higgs(source, profile).description,
    "task2b_superres_gan": lambda source, profile: (
        load_super_resolution(source, profile).description
    ),
    "task2c_sparse_vae": partial(_with_fresh, load_jets8),
    "task2d_diffusion": _prepare_unlabelled,
    "task2e_mass_regression": _prepare_top_mass,
    "task2f_cmssw_inference": _prepare_cmssw_inference,
    "task2g_ssl_vit": partial(_with_fresh, load_jets8),
    "task2h_graph_jets": partial(_with_fresh, load_quark_gluon),
    "task2i_foundation": _prepare_foundation,
    "task2j_symmetry": lambda source, profile: load_rotated_mnist(source, profile).description,
}
