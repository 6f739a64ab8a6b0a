"""Events for the tasks: official files where they are on disk, else simulated stand-ins.

One module a dataset. Every loader prints one line that says which events were loaded, and keeps
them in a cache that is built once per set of source files: images as SparseImages or HDF5, tables
as memory-mapped arrays.
"""

from e2e_utils.datasets.common import SOURCE_WORDS, SOURCES
from e2e_utils.datasets.electron_photon import EventDataset, load_electron_photon
from e2e_utils.datasets.higgs import HiggsDataset, load_higgs
from e2e_utils.datasets.jets import (
    JetDataset,
    SuperResolutionDataset,
    load_quark_gluon,
    load_super_resolution,
)
from e2e_utils.datasets.jets8 import Jets8Dataset, load_jets8
from e2e_utils.datasets.mnist import RotatedDigits, load_rotated_mnist
from e2e_utils.datasets.tasks import LOADERS, PREPARATIONS, prepare
from e2e_utils.datasets.top_mass import TopMassDataset, load_top_mass
from e2e_utils.datasets.two_photons import two_photon_file
from e2e_utils.rotations import ANGLES

__all__ = [
    "ANGLES",
    "LOADERS",
    "PREPARATIONS",
    "SOURCES",
    "SOURCE_WORDS",
    "EventDataset",
    "HiggsDataset",
    "JetDataset",
    "Jets8Dataset",
    "RotatedDigits",
    "SuperResolutionDataset",
    "TopMassDataset",
    "load_electron_photon",
    "load_higgs",
    "load_jets8",
    "load_quark_gluon",
    "load_rotated_mnist",
    "load_super_resolution",
    "load_top_mass",
    "prepare",
    "two_photon_file",
]
