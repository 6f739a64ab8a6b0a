"""The figures of a notebook as files, and the one that stands for it in the gallery.

Files rather than data URIs: a page is there before its figures, which are loaded as they come into
view, and the gallery shows the same file again. In the page they would be a third larger.
"""

import base64
import html
import struct
from dataclasses import dataclass
from pathlib import Path

from tools.notebook_pdf.exporter import SUFFIXES

GALLERY_TAG = "gallery"  # of a cell whose figure stands for its task
GALLERY_SECTION = "evaluation"  # else the largest figure of this section does


@dataclass(frozen=True)
class Figure:
    """One figure of a notebook; sizes in pixels, 0 where its format does not tell them."""

    address: str
    section: str
    tags: tuple[str, ...]
    width: int
    height: int

    def image(self, alt: str, lazy: bool = True) -> str:
        """The figure as an HTML element."""
        size = f' width="{self.width}" height="{self.height}"' if self.width else ""
        loading = ' loading="lazy"' if lazy else ""
        return f'<img src="{self.address}" alt="{html.escape(alt)}"{size}{loading}>'


def write_figure(
    kind: str, content: str, path: Path, section: str, tags: tuple[str, ...]
) -> Figure:
    """Write a figure of that MIME type beside ``path``, with the suffix of its format."""
    path = path.with_suffix("." + SUFFIXES[kind.removeprefix("image/")])
    image = content.encode() if path.suffix == ".svg" else base64.b64decode(content)
    path.write_bytes(image)
    width, height = struct.unpack(">II", image[16:24]) if path.suffix == ".png" else (0, 0)
    return Figure(f"{path.parent.name}/{path.name}", section, tags, width, height)


def gallery_figure(figures: list[Figure]) -> Figure | None:
    """The figure that stands for a notebook; None where it has none."""
    tagged = [figure for figure in figures if GALLERY_TAG in figure.tags]
    evaluation = [figure for figure in figures if GALLERY_SECTION in figure.section.lower()]
    candidates = tagged[:1] or evaluation or figures
    return max(candidates, key=lambda figure: figure.width * figure.height, default=None)
