"""Similarity of images against closed forms."""

import numpy as np
import pytest

from e2e_utils.image_similarity import PEAK, psnr, ssim


def test_psnr_and_ssim_of_a_known_difference() -> None:
    a = np.zeros((1, 3, 20, 20), np.float32)
    b = a.copy()
    b[0, 0, 3, 4] = np.e - 1  # one on the logarithmic scale
    assert psnr(a, b)[0] == pytest.approx(10 * np.log10(np.log(101) ** 2 * 1200))
    assert ssim(a, a)[0] == pytest.approx(1)
    assert ssim(a, b)[0] < 1


def test_ssim_of_constant_images_is_the_ratio_of_their_means() -> None:
    a, b = np.full((1, 1, 9, 9), 1.0), np.full((1, 1, 9, 9), 3.0)
    x, y, c = np.log(2), np.log(4), (0.01 * PEAK) ** 2
    assert ssim(a, b)[0] == pytest.approx((2 * x * y + c) / (x * x + y * y + c))
