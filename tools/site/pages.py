"""A page of the site: parts of Markdown, outputs in HTML and ready HTML, put together by pandoc.

Formulas become MathML, which every browser draws by itself: no script and no other host is needed.
"""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from tools.notebook_pdf.exporter import run_pandoc

HERE = Path(__file__).resolve().parent
# The name of a function in MathML: (what stands before it) name (what stands after it).
FUNCTION = re.compile(
    r"(</(?:mi|mn|msub|msup|msubsup)>)?(?<!<msub>)(?<!<msup>)(?<!<munder>)"
    r'(<mrow><mi mathvariant="normal">\w{2,}</mi><mo>(?:\u2061|&#8289;)</mo></mrow>)'
    r"(?=(<(?:mi|mn|mfrac|msqrt|msub|msup|msubsup|mrow)[ >])?)"
)
THIN_SPACE = '<mspace width="0.17em"></mspace>'


@dataclass(frozen=True)
class Site:
    """The folder that is written, and where the repository's files are found from its pages."""

    folder: Path
    addresses: dict[str, str]  # path from the repository's root -> address on the site
    elsewhere: str = ""  # address of all other files, where the repository is known


@dataclass(frozen=True)
class Page:
    """One page before it is written."""

    name: str  # of its file, without .html
    title: str
    parts: list[dict]
    base: Path  # images of its Markdown are looked up from here ...
    here: str = ""  # ... which is this folder of the repository
    images: str = "assets"  # folder of the site that they are copied to
    below_title: str = ""
    bar: str = ""
    side: str = ""  # below the contents; without it there are none
    after: str = ""


def write_page(site: Site, page: Page) -> None:
    """Write a page and the images of its Markdown.

    Raises InputError for a missing image and for a formula that pandoc does not know.
    """
    target = site.folder / page.images
    target.mkdir(exist_ok=True)
    document = {
        "parts": page.parts,
        "base": str(page.base.resolve()),
        "here": page.here,
        "target": str(target),
        "prefix": f"{page.images}/",
        "addresses": site.addresses,
        "elsewhere": site.elsewhere,
        "below_title": page.below_title,
    }
    variables = {
        "pagetitle": html.escape(page.title),
        "description": html.escape(page.title),
        "kind": "notebook" if page.side else "front",
        "bar": page.bar,
        "side": page.side,
        "after": page.after,
    }
    arguments = ["--from", str(HERE / "reader.lua"), "--to", "html5", "--mathml", "--wrap=none"]
    arguments += ["--template", str(HERE / "page.html"), "--syntax-highlighting=none"]
    arguments += ["--toc", "--toc-depth=3"] if page.side else []
    arguments += [f"--variable={name}={value}" for name, value in variables.items()]
    text = run_pandoc(arguments, document, page.name)
    (site.folder / f"{page.name}.html").write_text(space_functions(text), encoding="utf-8")


def space_functions(text: str) -> str:
    """Thin spaces around the names of functions, as TeX sets them: "h ln x" and not "hlnx"."""

    def spaced(match: re.Match) -> str:
        before, name, after = match.groups()
        left = before + THIN_SPACE if before else ""
        return left + name + (THIN_SPACE if after else "")

    return FUNCTION.sub(spaced, text)


def raw(text: str) -> dict:
    """Ready HTML as a part of a page."""
    return {"kind": "raw", "text": text, "cell": 0}
