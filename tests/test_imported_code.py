"""Which modules a script runs, and which changes of them count."""

from collections.abc import Callable
from pathlib import Path

import pytest

from e2e_utils import paths
from tools.imported_code import borrowed, code_hash, imported_modules, reached

CODE = '''\
"""A module."""
import math


def scaled(x: float, *, digits: int = 2) -> str:
    """A number as text."""
    match x:
        case 0:
            return ""
    # Small numbers have no digits.
    return f"{x:.{digits}f}" f"{x!r:>{digits}}{digits=}"
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A module."""\n', ""),
        ('    """A number as text."""\n', "    'Another text.'\n"),
        ("    # Small numbers have no digits.\n", ""),
        ("x: float, *, digits: int = 2", "x: float,\n    *,\n    digits: int = 2"),
        ('return ""', "return ''"),
    ],
)
def test_words_and_layout_do_not_count(old: str, new: str) -> None:
    assert old in CODE
    assert code_hash(CODE.replace(old, new)) == code_hash(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("digits: int = 2", "digits: int = 3"),
        ("digits: int = 2", "digits: int = 2.0"),
        ("case 0:", "case 1:"),
        ('return ""', 'return "0"'),
        ('return ""', "return b''"),
        (".{digits}f", ".{digits}g"),
        ("import math", "import cmath"),
        ("def ", "async def "),
    ],
)
def test_code_counts(old: str, new: str) -> None:
    assert old in CODE
    assert code_hash(CODE.replace(old, new)) != code_hash(CODE)


def test_the_hash_is_the_same_with_every_python() -> None:
    assert code_hash(CODE) == "396aa6b09c26c6ca"  # seen with CPython 3.11.7, 3.12.1 and 3.13.0
    assert code_hash('x = ["", 1]') != code_hash("x = [1]")


def test_code_that_cannot_be_parsed_counts_by_its_text() -> None:
    assert code_hash("x = (") != code_hash("x = [")


DEFINITIONS = """\
import math
import cmath
WIDTH, DEPTH = 32, 3
LOOSE = 1
CONFIGS = {"quick": 1, "standard": 2}
size = WIDTH
class Layer:
    area = math.pi * WIDTH
def network(): return [Layer() for _ in range(CONFIGS["quick"])]
def other(): return cmath.pi
"""


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("DEPTH = 32, 3", "DEPTH = 64, 3", True),  # by way of a class
        ("import math", "import numpy as math", True),
        ('"standard": 2', '"standard": 3', True),
        ('"quick": 1', '"quick": 3', False),
        ("LOOSE = 1", "LOOSE = 2", False),
        ("size = WIDTH", "size = 0", False),  # `load_definitions` leaves it out
        ("cmath.pi", "cmath.e", False),
    ],
)
def test_of_another_script_only_what_a_task_needs_counts(old: str, new: str, counts: bool) -> None:
    assert old in DEFINITIONS
    hashes = {
        reached(source, {"network"}, "standard")
        for source in (DEFINITIONS, DEFINITIONS.replace(old, new, 1))
    }
    assert len(hashes) == 1 + counts


def test_names_borrowed_from_another_task() -> None:
    script = 'OTHER = load_definitions("task")\nx = OTHER.network(OTHER.WIDTH)\n'
    assert borrowed(script, "task") == {"network", "WIDTH"}
    assert borrowed(script, "another") is None
    assert borrowed(script + "look(OTHER)\n", "task") is None  # may take anything
    whole = [reached(text, None, "standard") for text in (DEFINITIONS, DEFINITIONS + "MORE = 1")]
    assert whole[0] != whole[1]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writer of files of a project."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)

    def write(name: str, text: str = "") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_imports_are_followed_to_where_names_are_defined(write: Callable[..., Path]) -> None:
    write("e2e_utils/__init__.py", '"""Ground floor."""\n')
    write("e2e_utils/files.py", "import e2e_utils.errors as e\n")
    write("e2e_utils/errors.py")
    write("e2e_utils/unused.py")
    write("data/__init__.py")
    write(
        "data/loaders/__init__.py",
        "from data.loaders.jets import load_jets\nfrom data.loaders.mnist import load_digits\n"
        "__all__ = ['load_digits', 'load_jets']\n",
    )
    write("data/loaders/jets.py", "def load_jets():\n    from data.simulate import jets\n")
    write("data/loaders/mnist.py", "from e2e_utils import unused\n")
    write("data/simulate/__init__.py", "from e2e_utils import paths\nFOLDER = paths\n")
    write("data/simulate/jets.py", "import numpy\nfrom e2e_utils.files import sha256\n")
    write("e2e_utils/paths.py")
    jets = write("script.py", "import torch\n\nif True:\n    from data.loaders import load_jets\n")
    assert list(imported_modules(jets)) == [
        "data/loaders/jets.py",
        "data/simulate/__init__.py",
        "data/simulate/jets.py",
        "e2e_utils/errors.py",
        "e2e_utils/files.py",
        "e2e_utils/paths.py",
    ]
    digits = write("script.py", "from data.loaders import load_digits\n")
    assert list(imported_modules(digits)) == ["data/loaders/mnist.py", "e2e_utils/unused.py"]
    everything = write("script.py", "import data.loaders\n")
    assert set(imported_modules(everything)) == {*imported_modules(jets), *imported_modules(digits)}


def test_tasks_depend_on_their_own_events_only() -> None:
    code = {task: imported_modules(paths.script_path(task)) for task in paths.list_tasks()}
    assert all("e2e_utils/notebook.py" in modules for modules in code.values())
    for module, tasks in {
        "data/loaders/higgs.py": {"task2a_higgs_transformer"},
        "data/simulate/higgs_detector.py": {"task2a_higgs_transformer"},
        "data/loaders/mnist.py": {"task2j_symmetry"},
        "data/simulate/two_photons.py": {"task2f_cmssw_inference"},
        "data/simulate/egamma.py": {"common_task1", "task2f_cmssw_inference"},
        "data/loaders/tasks.py": set(),
    }.items():
        assert {task for task, modules in code.items() if module in modules} == tasks, module
