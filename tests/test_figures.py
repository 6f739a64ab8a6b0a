"""Figures become palette images only where nobody can see it."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from e2e_utils.figures import palette_png


def png_of(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


@pytest.mark.parametrize("n_colours", [2, 256])
def test_up_to_256_colours_nothing_is_lost(n_colours: int) -> None:
    rng = np.random.default_rng(0)
    colours = rng.permutation(256**2)[:n_colours]
    index = rng.integers(n_colours, size=(90, 120))
    rgba = np.stack([colours // 256, colours % 256, colours // 300, 0 * colours + 255], -1)[index]
    png = png_of(rgba)
    small = palette_png(png)
    assert Image.open(io.BytesIO(small)).mode == "P"
    assert len(small) < len(png)
    np.testing.assert_array_equal(pixels_of(small), rgba)
    assert palette_png(small) == small


def test_a_plot_keeps_its_lines() -> None:
    figure, axis = plt.subplots()
    for number in range(4):
        axis.plot(np.sin(np.linspace(0, 6 + number, 200)), label=f"line {number}")
    axis.legend()
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    plt.close(figure)
    png = stream.getvalue()
    small = palette_png(png)
    assert len(small) < 0.6 * len(png)
    errors = np.abs(pixels_of(small) - pixels_of(png)).max(axis=-1)
    assert errors.mean() < 0.2
    assert np.quantile(errors, 0.9999) <= 32


def test_pictures_and_transparency_stay_as_they_are() -> None:
    shades = png_of(np.random.default_rng(0).integers(256, size=(64, 64, 3)))
    assert palette_png(shades) == shades
    clear = png_of(np.zeros((8, 8, 4)))
    assert palette_png(clear) == clear
