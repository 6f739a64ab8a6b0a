"""What the square frame cuts off turned digits, and what interpolation changes.

    python -m data.calibration.mnist

fetches MNIST if it is missing and rewrites the table between the markers in data/README.md.
"""

import numpy as np

from data.calibration.report import update_readme
from data.loaders.rotations import ANGLES, rotate
from data.mnist import read_digits
from e2e_utils.errors import command_line

NOTICEABLE = 0.01  # of the light of an original


def lost_light(images: np.ndarray) -> np.ndarray:
    """(n, 12) share of the light of each image (n, H, H) whose pixel centres leave the frame."""
    size = images.shape[1]
    y, x = np.indices((size, size)).reshape(2, -1) - (size - 1) / 2
    angles = np.deg2rad(ANGLES)[:, None]
    turned_x = np.cos(angles) * x + np.sin(angles) * y  # (12, H * H); y points down
    turned_y = np.cos(angles) * y - np.sin(angles) * x
    outside = np.maximum(abs(turned_x), abs(turned_y)) > size / 2
    light = images.reshape(len(images), -1).astype(np.float32)
    return light @ outside.T.astype(np.float32) / light.sum(axis=1, keepdims=True)


def table(images: np.ndarray, label: np.ndarray) -> str:
    """Markdown: one line a digit."""
    lines = [
        "| digit | originals | light cut off, mean of all angles "
        f"| originals that lose {NOTICEABLE:.0%} or more at some angle | largest loss "
        "| light after 30 degrees / before, mean (std) |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for digit in np.unique(label):
        chosen = images[label == digit]
        lost = lost_light(chosen)
        kept = rotate(chosen, ANGLES[1]).sum(axis=(1, 2)) / chosen.sum(axis=(1, 2))
        lines.append(
            f"| {digit} | {len(chosen):,} | {lost.mean():.1e} "
            f"| {(lost.max(axis=1) >= NOTICEABLE).sum()} | {lost.max():.1%} "
            f"| {kept.mean():.4f} ({kept.std():.4f}) |"
        )
    return "\n".join(lines)


@command_line
def main() -> None:
    images, labels, _ = read_digits()
    text = table(np.concatenate(images), np.concatenate(labels))
    print(text)
    update_readme(text, "mnist")


if __name__ == "__main__":
    main()
