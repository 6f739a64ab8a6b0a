"""Where a run's results come from, and whether they are still those of today's sources.

Standard library only: `make all` asks this for every task before anything heavy is imported.
"""

import hashlib
import json
import re
import tomllib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from e2e_utils import paths
from e2e_utils.errors import InputError
from e2e_utils.files import sha256
from tools.imported_code import borrowed, code_hash, imported_modules, reached
from tools.notebook_outputs import joined

PRODUCT_PATTERNS = ("*.safetensors", "*.onnx", "*.csv")
# Sources that a task folder may hold beside its script.
SOURCE_SUFFIXES = (".py", ".cc", ".h", ".sh")
LOADED_TASK = re.compile(r"""load_definitions\(["'](\w+)["']\)""")
SIMULATION = "data/simulate/"


def check_task(task: str) -> str:
    """The task's name. Raises InputError for a name without a folder and a script."""
    if not paths.script_path(task).is_file():
        raise InputError(
            f"{task}: expected a task folder with {task}.py, found none; "
            f"choose from {', '.join(paths.list_tasks()) or 'none yet'}"
        )
    return task


def hash_files(files: Iterable[Path]) -> str:
    """16 hex digits over names and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def source_hash(task: str) -> str:
    """16 hex digits over the percent script of a task and every other source in its folder."""
    folder = paths.script_path(task).parent
    return hash_files(path for path in folder.rglob("*") if path.suffix in SOURCE_SUFFIXES)


def upstream_tasks(task: str) -> list[str]:
    """The tasks whose networks a script builds on."""
    return sorted(set(LOADED_TASK.findall(paths.script_path(task).read_text(encoding="utf-8"))))


def code_state(
    task: str, profile: str, data_source: str, data: str | None = None
) -> dict[str, str]:
    """File -> hash of its code, of everything beside the script that a run executes.

    Those are the modules that it imports, and of scripts whose definitions it loads their modules,
    the definitions that it needs, and the settings of its profile. The simulation counts only
    where events of it may be used.
    """
    source = paths.script_path(task).read_text(encoding="utf-8")
    without = SIMULATION if data_source == "official" or data else None
    code = imported_modules(paths.script_path(task), without)
    for other in upstream_tasks(task):
        script = paths.script_path(other)
        code |= imported_modules(script, SIMULATION)
        needed = borrowed(source, other)
        code[f"{other}/{script.name}"] = reached(
            script.read_text(encoding="utf-8"), needed, profile
        )
    return dict(sorted(code.items()))


def data_files(data: str | None) -> list[Path | str]:
    """Files of the parameter DATA (comma separated): absolute paths, and URLs as they are.

    Raises InputError for a path without a file.
    """
    names = [name.strip() for name in (data or "").split(",") if name.strip()]
    files = [name if "://" in name else Path(name).expanduser().resolve() for name in names]
    for path in files:
        if isinstance(path, Path) and not path.is_file():
            raise InputError(f"{path}: expected a data file, found none; check DATA=...")
    return files


def data_state(task: str, data_source: str, data: str | None = None) -> str:
    """16 hex digits that change when a task's events can change, without reading any event.

    Named files and official files count by name, size and time, a URL by what its server says of
    it, parts of official files by being there; stand-in events by the modules that simulate them
    and by the catalog's numbers of events.
    """
    state: list[object] = [data_source]
    files = data_files(data)
    if not files:
        catalog_file = paths.ROOT / "data" / "catalog.toml"
        catalog = tomllib.loads(catalog_file.read_text()) if catalog_file.exists() else {}
        entries = {
            name: entry
            for name, entry in sorted(catalog.items())
            if isinstance(entry, dict) and task in entry.get("task", [])
        }
        state.append(entries)
        names = [file["name"] for entry in entries.values() for file in entry.get("file", [])]
        if data_source != "standin":
            files = [paths.OFFICIAL / name for name in names if (paths.OFFICIAL / name).is_file()]
        if data_source == "auto":  # parts of official files: which events they hold is known
            parts = {part.name.partition(".")[0] for part in paths.OFFICIAL.glob("parts/*.first-*")}
            state.append([name for name in names if name.partition(".")[0] in parts])
        if data_source != "official":
            modules = imported_modules(paths.script_path(task))
            state.append([item for item in modules.items() if item[0].startswith(SIMULATION)])
    for path in files:
        if isinstance(path, str):
            from data.readers.remote_file import version_of  # not of the standard library

            state.append([path, version_of(path)])
        else:
            stat = path.stat()
            state.append([path.name, stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(state, default=str).encode()).hexdigest()[:16]


def script_hash(task: str, part: Callable[[str], str] = str, source: str | None = None) -> str:
    """`source_hash` without texts and comments of the script, of a part of its code.

    ``source``: in place of today's script.
    """
    script = paths.script_path(task)
    others = (path for path in script.parent.rglob("*") if path.suffix in SOURCE_SUFFIXES)
    source = script.read_text(encoding="utf-8") if source is None else source
    return code_hash(part(source)) + hash_files(path for path in others if path != script)


def training_code(source: str) -> str:
    """A percent script up to its section "Evaluation", which is all that trains.

    Where a later cell opens a `Training` of its own, or none does, it is the whole script.
    """
    start = re.search(r"^# ## [\d.]* *Evaluation", source, re.MULTILINE)
    trainings = [match.start() for match in re.finditer(r"\bTraining\(", source)]
    if start is None or not trainings or trainings[-1] > start.start():
        return source
    return source[: start.start()]


def run_key(
    task: str, profile: str, data_source: str, data: str | None = None, part: str = "all"
) -> str:
    """16 hex digits over everything that a run depends on.

    ``part`` of the script that counts: "all" of it, its "code" without the prose, or only the
    "training", which neither prose nor evaluation change.
    """
    hashes = {
        "all": source_hash,
        "code": script_hash,
        "training": partial(script_hash, part=training_code),
    }
    return combined(profile, data_state(task, data_source, data), hashes[part](task),
                    code_state(task, profile, data_source, data), task)  # fmt: skip


def combined(profile: str, data: str, sources: str, code: dict[str, str], task: str) -> str:
    """16 hex digits over the parts of a run's key, and over the networks that a task builds on.

    Those are products of other tasks that its script calls by their file names.
    """
    script = paths.script_path(task).read_text(encoding="utf-8")
    upstream = [
        {
            name: digest
            for name, digest in product_hashes(paths.WEIGHTS / other).items()
            if name in script
        }
        for other in upstream_tasks(task)
    ]
    parts = [profile, data, sources, json.dumps(code), json.dumps(upstream)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def read_json(path: Path) -> dict:
    """A JSON object, or an empty one where the file is missing or broken."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def products(folder: Path) -> list[Path]:
    """What a run wrote into its folder beside the notebook and metrics.json."""
    return sorted(path for pattern in PRODUCT_PATTERNS for path in folder.glob(pattern))


def product_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every product in a run's folder."""
    return {path.name: sha256(path) for path in products(folder)}


def stale_reason(folder: Path, task: str, key: str | None = None) -> str | None:
    """Why the run in ``folder`` is not a complete one with this ``key``; None if it is.

    Without a key only the run's own consistency is checked.
    """
    notebook = read_json(folder / f"{task}.ipynb").get("metadata", {}).get("e2e")
    metrics = read_json(folder / "metrics.json").get("provenance")
    if not notebook:
        return "no executed notebook"
    if not metrics:
        return "no metrics.json of a finished run"
    if notebook.get("key") != metrics.get("key"):
        return "notebook and metrics.json are of different runs"
    if key is not None and notebook.get("key") != key:
        return "sources, data or parameters have changed"
    if metrics.get("products") != product_hashes(folder):
        return "products are not those of the finished run"
    return None


def up_to_date(task: str, profile: str, data_source: str, data: str | None = None) -> bool:
    """Whether running the notebook again would change nothing."""
    key = run_key(task, profile, data_source, data)
    return stale_reason(paths.run_directory(profile, task), task, key) is None


def notebook_hash(nb: dict) -> str:
    """16 hex digits over what a reader sees: cells, outputs and the run's description."""
    cells = [
        {
            "type": cell["cell_type"],
            "source": joined(cell["source"]),
            "outputs": normal_form(cell.get("outputs", [])),
        }
        for cell in nb["cells"]
    ]
    content = [cells, nb.get("metadata", {}).get("e2e", {})]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def normal_form(outputs: object) -> object:
    """Outputs with multi-line strings joined: nbformat writes lists and reads strings."""
    if isinstance(outputs, list):
        if outputs and all(isinstance(item, str) for item in outputs):
            return "".join(outputs)
        return [normal_form(item) for item in outputs]
    if isinstance(outputs, dict):
        return {key: normal_form(value) for key, value in outputs.items()}
    return outputs


def layout_hash() -> str:
    """16 hex digits over what gives a PDF its look: a new one makes PDFs out of date."""
    package = Path(__file__).with_name("notebook_pdf")
    return hash_files(path for path in package.iterdir() if path.is_file())


def pdf_hashes(pdf: Path) -> dict[str, str]:
    """The hashes that the exporter put into a PDF's keywords; empty for another file."""
    try:
        content = pdf.read_bytes()
    except OSError:
        return {}
    if not content.startswith(b"%PDF"):
        return {}
    match = re.search(rb"notebook ([0-9a-f]{16}), layout ([0-9a-f]{16})", content)
    return {"notebook": match[1].decode(), "layout": match[2].decode()} if match else {}
