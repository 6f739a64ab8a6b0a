"""Images turned in steps of 30 degrees, counter-clockwise on the screen (origin upper left)."""

from functools import cache

import numpy as np
from scipy import ndimage

STEP = 30
ANGLES = tuple(range(0, 360, STEP))
SPLINE_ORDER = 3


def rotate_steps(images: np.ndarray) -> np.ndarray:
    """All twelve angles of square uint8 images: (n, H, H) -> (n, 12, H, H), the first untouched.

    Only 30 and 60 degrees are interpolated. The others are quarter turns of these three, which are
    exact: they only move pixels.
    """
    turned = np.empty((len(images), len(ANGLES), *images.shape[1:]), np.uint8)
    quarter = 90 // STEP
    for step, angle in enumerate(ANGLES[:quarter]):
        first = rotate(images, angle) if angle else images
        for turn in range(4):
            turned[:, step + turn * quarter] = np.rot90(first, turn, axes=(1, 2))
    return turned


def rotate(images: np.ndarray, angle: float) -> np.ndarray:
    """Square uint8 images (n, H, H), turned by ``angle`` degrees about the centre of the frame.

    Cubic splines keep strokes sharp: with bilinear interpolation the blur alone would tell a
    turned image from an untouched one. Their overshoots are clipped to 0 and 255. What leaves the
    frame is lost, what enters it is black.
    """
    size = images.shape[1]
    # Double precision, so that no grey level is rounded differently on another machine.
    pixels = images.reshape(len(images), -1).astype(np.float64)
    turned = (pixels @ _rotation_matrix(size, angle)).reshape(images.shape)
    return np.rint(turned).clip(0, 255).astype(np.uint8)


@cache
def _rotation_matrix(size: int, angle: float) -> np.ndarray:
    """(H * H, H * H): row i holds where the light of pixel i goes. Interpolation is linear."""
    pixels = np.eye(size * size).reshape(-1, size, size)
    turned = ndimage.rotate(
        pixels, angle, axes=(2, 1), reshape=False, order=SPLINE_ORDER, mode="grid-constant"
    )
    return turned.reshape(size * size, -1)
