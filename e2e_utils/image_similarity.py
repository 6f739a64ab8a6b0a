"""Similarity of images pixel by pixel, on the scale ln(1 + x / GeV) with the peak 100 GeV."""

from functools import partial

import numpy as np
from scipy.ndimage import uniform_filter

PEAK = float(np.log1p(100.0))


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """10 log10(peak^2 / mean squared difference) of image pairs (n, C, H, W), in dB; (n,)."""
    squared = ((_log_image(a) - _log_image(b)) ** 2).mean((1, 2, 3))
    return 10 * np.log10(PEAK**2 / np.maximum(squared, 1e-12))


def ssim(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity (n,) of image pairs (n, C, H, W), mean over channels.

    Windows of 7 x 7 pixels. Source: Wang et al., IEEE TIP 13 (2004) 600.
    """
    blur = partial(uniform_filter, size=(1, 1, 7, 7))
    a, b = _log_image(a), _log_image(b)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    both = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    ratio = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (ratio / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean((1, 2, 3))


def _log_image(x: np.ndarray) -> np.ndarray:
    return np.log1p(np.clip(x, 0, None).astype(np.float64))
