"""Events for the tasks: official files where they are on disk, else simulated stand-ins.

One module a dataset. Every loader prints one line that says which events were loaded, and keeps
them in a cache that is built once per set of source files: images as SparseImages or HDF5, tables
as memory-mapped arrays.
"""

from data.loaders.common import SOURCE_WORDS
from data.loaders.electron_photon import EventDataset, load_electron_photon
from data.loaders.higgs import HiggsDataset, OfficialRows, load_higgs, load_official_rows
from data.loaders.jets import (
    JetDataset,
    SuperResolutionDataset,
    load_quark_gluon,
    load_super_resolution,
)
from data.loaders.jets8 import Jets8Dataset, load_jets8
from data.loaders.mnist import RotatedDigits, load_rotated_mnist
from data.loaders.rotations import ANGLES
from data.loaders.super_resolution import load_fresh_super_resolution
from data.loaders.tasks import LOADERS, PREPARATIONS, prepare
from data.loaders.top_mass import TopMassDataset, load_top_mass
from data.loaders.two_photons import two_photon_file

__all__ = [
    "ANGLES",
    "LOADERS",
    "PREPARATIONS",
    "SOURCE_WORDS",
    "EventDataset",
    "HiggsDataset",
    "JetDataset",
    "Jets8Dataset",
    "OfficialRows",
    "RotatedDigits",
    "SuperResolutionDataset",
    "TopMassDataset",
    "load_electron_photon",
    "load_fresh_super_resolution",
    "load_higgs",
    "load_jets8",
    "load_official_rows",
    "load_quark_gluon",
    "load_rotated_mnist",
    "load_super_resolution",
    "load_top_mass",
    "prepare",
    "two_photon_file",
]
