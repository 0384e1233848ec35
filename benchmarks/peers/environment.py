"""Virtual environments with pinned packages, in a cache folder; made when they are first needed or the pins change."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import Unmeasured

STAMP = "pins.txt"
MAKING = 600.0
ASK_VERSION = "import sys; print(*sys.version_info[:2])"


def interpreter(name: str, pins: Sequence[str], least: tuple[int, int]) -> Path:
    """Return the Python of an environment that has the packages, at least of that version. Raises Unmeasured."""
    base = sys.executable if sys.version_info >= least else _newer_python(name, least)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyasync-benchmarks"
    folder = cache / name
    stamp = folder / STAMP
    wanted = "\n".join([base, *pins])
    with _alone(cache, name):
        if not stamp.exists() or stamp.read_text() != wanted:
            _make(folder, base, pins)
            stamp.write_text(wanted)
    return folder / "bin" / "python"


@contextmanager
def _alone(cache: Path, name: str) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"{name}.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(folder: Path, base: str, pins: Sequence[str]) -> None:
    print(f"making {folder} with {', '.join(pins)}", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    for command in (
        [base, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *pins],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=MAKING)
        except subprocess.CalledProcessError as failed:
            raise Unmeasured(f"{failed} {failed.stderr.strip()[-500:]}") from failed
        except subprocess.TimeoutExpired as slow:
            raise Unmeasured(str(slow)) from slow


def _newer_python(name: str, least: tuple[int, int]) -> str:
    """Look on the PATH and among pyenv's versions for the newest Python."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    named = [shutil.which(f"python3.{minor}") for minor in range(least[1], least[1] + 10)]
    found = [*filter(None, named), *map(str, pyenv.glob("*/bin/python"))]
    version, path = max(((_version(each), each) for each in found), default=((0, 0), ""))
    if version < least:
        raise Unmeasured(f"{name} needs Python {least[0]}.{least[1]} or newer; put one on the PATH")
    return path


def _version(python: str) -> tuple[int, ...]:
    """What a Python says it is; of one that does not run: nothing."""
    done = subprocess.run([python, "-c", ASK_VERSION], capture_output=True, text=True)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else ()
