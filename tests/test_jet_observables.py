"""Observables of jet images against images whose observables are known."""

import numpy as np
import pytest

from e2e_utils.jet_observables import PIXEL, jet_observables, ratio_of_sums


def test_two_pixels_by_hand() -> None:
    x = np.zeros((2, 3, 125, 125), np.float32)
    x[0, 1, 62, 62], x[0, 1, 62, 66] = 3.0, 1.0
    x[0, 1, 0, 0] = -0.5  # counts as a hit and for the sum, not for the shapes
    x[1, 0, 60, 62] = 2.0
    table = jet_observables(x)
    assert table.shape == (2, 34)
    first = table.iloc[0]
    assert first["ecal_energy"] == pytest.approx(3.5)
    assert first["ecal_hits"] == 3
    assert first["ecal_phi"] == pytest.approx(1.0)
    assert first["ecal_eta"] == 0
    assert first["ecal_width_phi"] == pytest.approx(np.sqrt(3))
    assert first["ecal_ptd"] == pytest.approx(np.sqrt(10) / 4)
    assert first["ecal_leading"] == pytest.approx(0.75)
    assert first["ecal_within_5"] == 1
    # m^2 = 2 p1 p2 (cosh(eta1 - eta2) - cos(phi1 - phi2))
    expected = np.sqrt(2 * 3 * (1 - np.cos(4 * PIXEL)))
    assert first["mass"] == pytest.approx(expected, rel=1e-4)
    assert table.loc[1, "track_eta"] == -2
    assert table.loc[1, "mass"] == 0
    assert table.loc[1, "hcal_ptd"] == 0  # an empty channel
    assert np.isfinite(table.to_numpy()).all()


def test_ratio_of_sums_is_the_mean_over_seeds_with_its_interval() -> None:
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 2, 400)
    entry = ratio_of_sums([true * 1.1, true * 0.9 + rng.normal(0, 0.1, 400)], true)
    assert entry["value"] == pytest.approx(1.0, abs=0.01)
    assert entry["low"] <= entry["value"] <= entry["high"]
    assert entry["seed_std"] == pytest.approx(0.2 / np.sqrt(2), rel=0.1)
    exact = ratio_of_sums([true], true)
    assert exact == {"value": 1.0, "low": 1.0, "high": 1.0}
