"""What of an output a page without scripts can show: notebooks of others hold anything.

Interactive plots, animations and types of other tools become their plain text, or a note where they
have none. Standard library only.
"""

import re

from e2e_utils.files import readable_size
from tools.notebook_outputs import PREFERENCE, joined

MOST_CHARACTERS = 200_000  # of rich text without its images: a table of some thousand rows
DATA_URI = re.compile(r"data:image/(png|jpeg|gif|webp|svg\+xml);base64,([A-Za-z0-9+/=\s]+)")
# Programs and their controls, films, and the style of a page that is not ours.
UNSHOWN_ELEMENTS = re.compile(
    r"<!--.*?(?:-->|\Z)|<(script|style|video|audio|iframe|object|noscript|template|form|button|select)"
    r"\b.*?(?:</\1\s*>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
EMPTY_ELEMENTS = re.compile(r"<(?!img\b[^>]*\bsrc\s*=)[^>]*>", re.IGNORECASE)
# What a library sends to set itself up: nobody would miss it.
SILENT = re.compile(r"application/(javascript|vnd\.(bokehjs|holoviews)_load\.v\d\+json)")
NOTE = "note"  # a type of its own: a line in place of an output


def readable(data: dict) -> tuple[str, str] | None:
    """(type, content) of the richest representation that can be shown; None where none is needed.

    The type is one of ``PREFERENCE`` or ``NOTE``, whose content says what the notebook holds.
    """
    for kind in PREFERENCE:
        if kind not in data:
            continue
        content = joined(data[kind])
        if kind == "text/html":
            content = without_programs(content)
        if kind.startswith("image/") or kind == "text/plain" or is_showable(content):
            return kind, content
    unshown = [kind for kind in data if not SILENT.fullmatch(kind)]
    if not unshown:
        return None
    largest = max(unshown, key=lambda kind: len(content_of(data[kind])))
    size = readable_size(len(content_of(data[largest])))
    return NOTE, f"Output of type {largest} ({size}): only the notebook itself shows it."


def without_programs(html: str) -> str:
    """HTML without scripts, films and controls, which mean nothing on paper."""
    return UNSHOWN_ELEMENTS.sub("", html)


def is_showable(text: str) -> bool:
    """Whether rich text has anything to see, and not too much of it; images do not count."""
    bare = DATA_URI.sub("image", text)
    return len(bare) <= MOST_CHARACTERS and bool(EMPTY_ELEMENTS.sub("", bare).strip())


def content_of(value: object) -> str:
    """The text of a representation; JSON ones hold dictionaries."""
    return joined(value) if isinstance(value, str | list) and is_text(value) else str(value)


def is_text(value: str | list) -> bool:
    """Whether ``joined`` understands a value."""
    return isinstance(value, str) or all(isinstance(item, str) for item in value)
