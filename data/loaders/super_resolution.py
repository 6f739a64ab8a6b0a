"""The independent sample of task 2b."""

from data.loaders.jets import SuperResolutionDataset, _load, _simulate_fresh


def load_fresh_super_resolution(profile: str = "quick") -> SuperResolutionDataset:
    """Stand-in jets as of `load_super_resolution` that no training has seen: another seed's."""
    name = "quark_gluon_superresolution"
    return _load(name, "standin", profile, None, False, SuperResolutionDataset, _simulate_fresh)
