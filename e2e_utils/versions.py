"""Versions of what results depend on. Standard library only: `make all` asks before it imports."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "torch",
    "torchvision",
    "torch_geometric",
    "accelerate",
    "numpy",
    "scikit-learn",
    "h5py",
    "onnx",
    "onnxruntime",
)


def library_versions() -> dict[str, str]:
    """Version of Python and of every package of ``PACKAGES`` that is installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions
