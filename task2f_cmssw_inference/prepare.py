"""Install the old engines of ONNX Runtime: `make data` calls this, a notebook never does.

    python -m task2f_cmssw_inference.prepare

Nothing but the wheels whose hashes stand here and in ``engines.py`` is installed. An engine that
this machine cannot have is left out; the notebook names it.
"""

import os
import shutil
import subprocess
from pathlib import Path

from e2e_utils.files import remove
from task2f_cmssw_inference.engines import OLD_ENGINES, Engine, EngineMissing

NUMPY = "numpy==1.21.6"
NUMPY_SHA256 = {
    "3.7": "a6be4cb0ef3b8c9250c19cc122267263093eee7edd4e3fa75395dfda8c17a8e2",
    "3.8": "4aa48afdce4660b0076a00d80afa54e8a97cd49f457d68a4342d188a09451c1a",
}
PATIENCE = 150  # seconds for the installation of one engine


def find_interpreter(version: str) -> str:
    """A CPython of this minor version: on the PATH, or one of pyenv. Raises EngineMissing."""
    named = shutil.which(f"python{version}")
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    candidates = [named] if named else []
    candidates += [str(path) for path in sorted(pyenv.glob(f"{version}.*/bin/python"))]
    for candidate in candidates:
        command = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == 0 and found.stdout.strip() == version:
            return candidate
    raise EngineMissing(f"no CPython {version} on this machine")


def install(engine: Engine) -> None:
    """Make the environment of an engine where it is missing.

    Raises EngineMissing without the interpreter or when a wheel cannot be installed.
    """
    environment = engine.environment
    if (environment / "ready").is_file():
        return
    interpreter = find_interpreter(engine.python)
    remove(environment)
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    pip += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    wheels = environment / "wheels.txt"
    _run([interpreter, "-m", "venv", str(environment)])
    wheels.write_text(
        f"onnxruntime=={engine.version} --hash=sha256:{engine.sha256}\n"
        f"{NUMPY} --hash=sha256:{NUMPY_SHA256[engine.python]}\n"
    )
    _run([*pip, "--require-hashes", "-r", str(wheels)])
    (environment / "ready").touch()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired as error:
        raise EngineMissing(f"installation took longer than {PATIENCE} s") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise EngineMissing(f"installation failed: {lines[-1]}")


def main() -> None:
    """Install every engine that this machine can have, and print one line each."""
    for engine in OLD_ENGINES:
        try:
            install(engine)
            print(f"ONNX Runtime {engine.version}: {engine.environment}")
        except EngineMissing as reason:
            print(f"ONNX Runtime {engine.version} is left out: {reason}")


if __name__ == "__main__":
    main()
