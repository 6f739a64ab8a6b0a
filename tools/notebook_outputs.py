"""Outputs of executed notebooks, reduced to what a reader needs.

Used on the notebook after its execution (GitHub, Colab) and again before the PDF, so that any
notebook can be exported. Standard library only: `make all` imports it when there is nothing to do.
"""

import re

ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b\][^\x07]*\x07")
PROGRESS_BAR = re.compile(r"\d+%\|.{0,200}?\|\s*[\d.,a-zA-Z]+/|\d+(?:it|\w+)? \[\d\d:\d\d, ")
OBJECT_REPR = re.compile(r"<[\w.]+(?: object| size)?[^\n]*>\s*")
WIDGET_TYPES = (
    "application/vnd.jupyter.widget-view+json",
    "application/vnd.jupyter.widget-state+json",
)
# The first of an output's types that is present is shown in the PDF.
PREFERENCE = (
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "image/gif",
    "image/webp",
    "text/html",
    "text/markdown",
    "text/latex",
    "text/plain",
)
IMAGE_TYPES = ("image/svg+xml", "image/png", "image/jpeg")


def joined(text: str | list[str]) -> str:
    """nbformat stores text either as one string or as a list of lines."""
    return text if isinstance(text, str) else "".join(text)


def strip_ansi(text: str) -> str:
    """Remove terminal colours, cursor movements and window titles."""
    return ANSI.sub("", text)


def merge_carriage_returns(text: str) -> str:
    """What a terminal would show at the end: every line after its last carriage return."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(
        next((state for state in reversed(line.split("\r")) if state.strip()), "") for line in lines
    )


def drop_progress_bars(text: str) -> str:
    """Remove the lines of tqdm bars: they show the speed of a machine, not a result."""
    lines = text.split("\n")
    kept = [line for line in lines if not PROGRESS_BAR.search(line)]
    if len(kept) == len(lines):
        return text
    return "\n".join(kept) if any(line.strip() for line in kept) else ""


def clean_text(text: str | list[str], replacements: dict[str, str] | None = None) -> str:
    """Plain text without colours, bars and machine paths."""
    return relative_paths(
        drop_progress_bars(merge_carriage_returns(strip_ansi(joined(text)))), replacements or {}
    )


def relative_paths(text: str, replacements: dict[str, str]) -> str:
    """Replace a machine's folders (longest first), kernel cell files and site-packages."""
    text = re.sub(r"/[^\s'\":]*/ipykernel_\d+/\d+\.py", "<cell>", text)
    text = re.sub(r"/[^\s'\":]*/site-packages/", "site-packages/", text)
    for folder in sorted(replacements, key=len, reverse=True):
        short = replacements[folder]
        whole = r"(?<![\w.~-])" + re.escape(folder)
        text = re.sub(whole + "/", f"{short}/" if short else "", text)
        text = re.sub(whole + r"(?![\w-])", short or ".", text)
    return text


def clean_output(output: dict, replacements: dict[str, str] | None = None) -> dict | None:
    """One output without runner metadata and redundant types; None if nothing remains.

    An image needs no text beside it, nor does a rich output need ``<Figure size ...>``; a table
    keeps its plain text beside the HTML (GitHub shows the HTML, a diff shows the text).
    """
    replacements = replacements or {}
    kind = output["output_type"]
    output = dict(output)
    if kind == "stream":
        output["text"] = clean_text(output["text"], replacements)
        return output if output["text"].strip() else None
    if kind == "error":
        output["traceback"] = [clean_text(line, replacements) for line in output["traceback"]]
        return output
    data = {k: v for k, v in output["data"].items() if k not in WIDGET_TYPES}
    had_widget = len(data) < len(output["data"])
    images = [kind for kind in IMAGE_TYPES if kind in data]
    if images:  # a vector figure in place of its bitmap, never both
        data = {images[0]: data[images[0]]}
    plain = joined(data.get("text/plain", ""))
    if "text/plain" in data and (len(data) > 1 or had_widget) and OBJECT_REPR.fullmatch(plain):
        del data["text/plain"]
    if not data or (had_widget and list(data) == ["text/plain"]):
        return None
    output["data"] = {
        key: clean_text(value, replacements)
        if key == "text/plain"
        else relative_paths(joined(value), replacements)
        if key.startswith("text/")
        else value
        for key, value in data.items()
    }
    output["metadata"] = {}
    return output


def clean_outputs(outputs: list[dict], replacements: dict[str, str] | None = None) -> list[dict]:
    """All outputs of one cell, with neighbouring pieces of the same stream merged."""
    merged: list[dict] = []
    for output in outputs:
        last = merged[-1] if merged else None
        if (
            last
            and output["output_type"] == last["output_type"] == "stream"
            and output["name"] == last["name"]
        ):
            last["text"] = joined(last["text"]) + joined(output["text"])
        else:
            merged.append(dict(output))
    cleaned = (clean_output(output, replacements) for output in merged)
    return [output for output in cleaned if output is not None]
