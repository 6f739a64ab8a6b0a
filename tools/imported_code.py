"""The project's modules that a script imports, and hashes of what they compute.

A hash is over the syntax tree without comments and docstrings, so that better words make no run
stale. Nothing is imported: the trees of the files are followed, imports inside functions included.
Standard library only.
"""

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

from e2e_utils import paths

PACKAGES = ("e2e_utils", "data")
Import = tuple[str, str]  # module, and the name that is imported from it ("" for none)


@functools.cache
def code_hash(source: str) -> str:
    """16 hex digits over Python code; the same with CPython 3.11 to 3.13."""
    return tree_hash(parsed(source))


def settled(source: str, profile: str) -> str:
    """`code_hash` of what a run of one profile sees: of CONFIGS only its own entry."""
    return tree_hash(with_settings(parsed(source), profile))


def with_settings(tree: ast.Module, profile: str) -> ast.Module:
    """The tree with the settings of one profile only."""
    for node in tree.body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "CONFIGS"
            and isinstance(node.value, ast.Dict)
        ):
            entries = zip(node.value.keys, node.value.values, strict=True)
            own = [(k, v) for k, v in entries if ast.unparse(k) == repr(profile)]
            node.value = ast.Dict([k for k, _ in own], [v for _, v in own])
    return tree


def borrowed(script: str, task: str) -> set[str] | None:
    """The names that a script takes from another task's definitions; None: maybe all of them."""
    tree, names, found = parsed(script), set(), set()
    for node in tree.body:
        call = node.value if isinstance(node, ast.Assign) else None
        if isinstance(call, ast.Call) and ast.unparse(call) == f"load_definitions({task!r})":
            names |= {ast.unparse(target) for target in node.targets}
    as_attribute = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in names:
            found.add(node.attr)
            as_attribute += 1
    uses = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id in names]
    loaded = sum(isinstance(n.ctx, ast.Load) for n in uses)
    return found if names and loaded == as_attribute else None


def reached(source: str, names: set[str] | None, profile: str) -> str:
    """`settled` of the definitions with these names and of all that they need; None: of all."""
    tree = with_settings(parsed(source), profile)
    if names is None:
        return tree_hash(tree)
    needed, waiting = set(), set(names)
    while waiting:
        needed |= waiting
        users = [node for node in tree.body if given(node) & waiting]
        waiting = {n.id for user in users for n in ast.walk(user) if isinstance(n, ast.Name)}
        waiting -= needed
    tree.body = [node for node in tree.body if given(node) & needed]
    return tree_hash(tree)


def given(statement: ast.stmt) -> set[str]:
    """The names that a statement defines, if `load_definitions` executes it."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).partition(".")[0] for alias in statement.names}
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    targets = [n for n in ast.walk(statement) if isinstance(getattr(n, "ctx", None), ast.Store)]
    names = {n.id for n in targets if isinstance(n, ast.Name)}
    return {name for name in names if name == name.upper()}


def tree_hash(tree: ast.AST) -> str:
    """16 hex digits over a syntax tree."""
    return hashlib.sha256("\n".join(written(tree)).encode()).hexdigest()[:16]


def written(node: object) -> Iterator[str]:
    """A syntax tree as lines, without text that does nothing.

    ``ast.dump`` and ``ast.unparse`` write it differently in each version of Python, and new ones
    have new fields, which are empty in old code.
    """
    if isinstance(node, ast.AST):
        yield type(node).__name__
        for name, value in ast.iter_fields(node):
            if isinstance(node, ast.JoinedStr):  # 3.12 adds empty pieces to some
                value = [piece for piece in value if getattr(piece, "value", None) != ""]
            elif isinstance(value, list):
                value = [item for item in value if not is_text(item)]
            if value is not None and value != []:
                yield f".{name}"
                yield from written(value)
        yield "end"
    elif isinstance(node, list):
        for item in node:
            yield from written(item)
    else:
        yield f"{type(node).__name__} {node!a}"


def parsed(source: str) -> ast.Module:
    """The syntax tree of a file; code that cannot be parsed counts by its text."""
    try:
        return ast.parse(source)
    except SyntaxError:
        return ast.Module([ast.Return(ast.Constant(source))], [])


def is_text(node: object) -> bool:
    """Whether a statement is a bare string: a docstring, or a comment in the form of one."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def imported_modules(script: Path, without: str | None = None) -> dict[str, str]:
    """File name relative to the repository -> ``code_hash``, of every module that a script runs.

    Modules below the folder ``without`` are left out, with what only they import. Names that a
    package only passes on are followed to where they are defined: who imports one loader depends
    on that one, not on all that ``data.loaders`` offers.
    """
    found: dict[str, str] = {}
    waiting = list(imports(script.read_text(encoding="utf-8")))
    seen = set(waiting)
    while waiting:
        file, following = resolve(*waiting.pop())
        if file is not None:
            name = file.relative_to(paths.ROOT).as_posix()
            if without and name.startswith(without):
                continue
            source = file.read_text(encoding="utf-8")
            found[name] = code_hash(source)
            following = {*imports(source), *packages_around(file)}
        waiting += set(following) - seen
        seen |= set(following)
    return dict(sorted(found.items()))


@functools.cache
def imports(source: str) -> frozenset[Import]:
    """Every import from this project's packages."""
    found = set()
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {(node.module, alias.name) for alias in node.names}
    return frozenset((m, name) for m, name in found if m.split(".")[0] in PACKAGES)


def resolve(module: str, name: str) -> tuple[Path | None, set[Import]]:
    """The file that an import executes, or the imports to follow in its place."""
    base = paths.ROOT.joinpath(*module.split("."))
    package = base / "__init__.py"
    if base.with_suffix(".py").is_file():
        return base.with_suffix(".py"), set()
    if name and ((base / name).is_dir() or (base / f"{name}.py").is_file()):
        return None, {(f"{module}.{name}", "")}
    if not package.is_file():
        return None, set()
    source = package.read_text(encoding="utf-8")
    if not only_passes_on(source):
        return package, set()
    offered = imports(source)
    return None, {item for item in offered if item[1] == name} or set(offered)


def packages_around(file: Path) -> set[Import]:
    """The packages whose own code is executed before a module's."""
    found = set()
    for folder in file.relative_to(paths.ROOT).parents[:-1]:
        package = paths.ROOT / folder / "__init__.py"
        if package.is_file() and not only_passes_on(package.read_text(encoding="utf-8")):
            found.add((".".join(folder.parts), ""))
    return found


@functools.cache
def only_passes_on(source: str) -> bool:
    """Whether a package's code is imports, ``__all__`` and text."""
    return all(
        isinstance(node, ast.Import | ast.ImportFrom)
        or is_text(node)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
        for node in parsed(source).body
    )
