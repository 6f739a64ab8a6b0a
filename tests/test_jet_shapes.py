"""Shapes of jets: closed forms, and a loop over pairs."""

import numpy as np
import pytest
import torch

from e2e_utils.jet_shapes import BETAS, PIXEL, energy_correlations, jet_shapes
from e2e_utils.sparse_images import SparseImages


def test_shapes_of_two_tracks_in_closed_form() -> None:
    x = np.zeros((1, 3, 125, 125), np.float32)
    x[0, 0, 60, 60], x[0, 0, 60, 70] = 3.0, 1.0
    x[0, 1, 60, 60] = -2.0  # noise is left out
    shapes = jet_shapes(SparseImages.from_dense(x), np.arange(1)).iloc[0]
    apart = 10 * PIXEL
    assert shapes.track_multiplicity == 2
    assert shapes.track_n_hard == 1
    assert shapes.ecal_multiplicity == 0
    assert shapes.track_sum == pytest.approx(4, rel=1e-5)
    assert shapes.track_ptd == pytest.approx(np.sqrt(10) / 4, rel=1e-5)
    assert shapes.track_leading == pytest.approx(0.75, rel=1e-5)
    # distances to the centroid: a quarter and three quarters of the way
    assert shapes.track_width == pytest.approx((3 * 0.25 + 0.75) * apart / 4, rel=1e-5)
    root = (3 * np.sqrt(0.25) + np.sqrt(0.75)) * np.sqrt(apart) / 4
    assert shapes.track_lha == pytest.approx(root, rel=1e-5)
    assert shapes.track_major == pytest.approx((3 * 0.25**2 + 0.75**2) * apart**2 / 4, rel=1e-4)
    assert shapes.track_minor == pytest.approx(0, abs=1e-8)
    assert shapes["track_ring_0.05"] == pytest.approx(0.75, rel=1e-5)
    assert shapes["track_ring_0.2"] == pytest.approx(0.25, rel=1e-5)


def test_a_tower_counts_once_whatever_its_pixels() -> None:
    x = np.zeros((1, 3, 125, 125), np.float32)
    x[0, 2, 60:65, 60:65] = 2 / 25
    shapes = jet_shapes(SparseImages.from_dense(x), np.arange(1)).iloc[0]
    assert shapes.hcal_multiplicity == pytest.approx(1, rel=1e-5)
    assert shapes.hcal_sum == pytest.approx(2, rel=1e-4)
    assert shapes.hcal_fraction == pytest.approx(1, rel=1e-4)


def test_jets_do_not_mix_and_empty_ones_are_finite() -> None:
    rng = np.random.default_rng(0)
    x = np.where(rng.random((4, 3, 125, 125)) < 0.01, rng.exponential(1, (4, 3, 125, 125)), 0)
    x[2] = 0
    images = SparseImages.from_dense(x.astype(np.float32))
    shapes = jet_shapes(images, np.arange(4))
    assert np.isfinite(shapes.to_numpy()).all()
    alone = jet_shapes(images, np.array([3]))
    np.testing.assert_allclose(shapes.iloc[3], alone.iloc[0], rtol=1e-5)


def test_energy_correlations_against_a_loop_over_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    place, energy = torch.rand(2, 6, 2, generator=generator), torch.rand(2, 6, generator=generator)
    energy[:, 4] = 0
    found = energy_correlations(place, energy).numpy()
    for jet in range(2):
        z = energy[jet] / energy[jet].sum()
        for number, beta in enumerate(BETAS):
            expected = 0.0
            for i in range(6):
                for j in range(i):
                    apart = np.linalg.norm(place[jet, i] - place[jet, j])
                    expected += float(z[i] * z[j]) * apart**beta
            assert found[jet, number] == pytest.approx(expected, rel=1e-4)
