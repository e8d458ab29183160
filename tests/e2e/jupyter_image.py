"""An image with Jupyter, made without a registry: this very Python, the packages that pip installs, and what they are linked with.

The same parts as in examples/images/jupyter/Dockerfile. The packages are fetched once and kept in a cache folder.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

import pytest
from e2e.docker_market import LEFT_AWAY
from integration.docker_engine import root_file_system

JUPYTER_IMAGE = "bazaar-jupyter:1"
REQUIREMENTS = ("jupyterlab==4.6.6", "ipykernel==7.4.0")
NOT_NEEDED = {"__pycache__", "tests", "test", "debugpy"}
"""Of the packages: what only other uses than opening a notebook need, tens of megabytes."""
PASSWD = b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\n"


def packages() -> Path:
    """A folder with the packages and their data files, installed for this Python."""
    name = f"{sys.version_info.major}.{sys.version_info.minor}-{hashlib.sha256(repr(REQUIREMENTS).encode()).hexdigest()[:12]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gpubazaar-tests" / f"jupyter-{name}"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix="jupyter-", dir=cache.parent))
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--target", str(draft), *REQUIREMENTS]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=300)
        if done.returncode != 0:
            shutil.rmtree(draft, ignore_errors=True)
            pytest.skip(f"pip cannot fetch {' '.join(REQUIREMENTS)}: {done.stderr[-500:]}")
        try:
            draft.rename(cache)
        except OSError:  # another run was faster
            shutil.rmtree(draft, ignore_errors=True)
    return cache


def jupyter_root() -> bytes:
    """The root file system."""
    program = Path(os.path.realpath(sys.executable))
    prefix, stdlib, added = program.parent.parent, Path(sysconfig.get_path("stdlib")), packages()
    buffer = io.BytesIO(root_file_system(passwd=PASSWD))
    with tarfile.open(fileobj=buffer, mode="a") as tar:
        linked = _linked([program, *(stdlib / "lib-dynload").glob("*.so"), *added.rglob("*.so*")])
        for path in sorted({str(program), *(path for path in linked if not path.startswith(f"{added}/"))}):
            tar.add(os.path.realpath(path), path.lstrip("/"))
        _add(tar, stdlib, str(stdlib), {*LEFT_AWAY, *(path.name for path in stdlib.glob("config-*"))})
        for entry in sorted(added.iterdir()):
            target = f"{prefix}/{entry.name}" if entry.name in ("share", "etc") else f"{stdlib}/site-packages/{entry.name}"
            _add(tar, entry, target, NOT_NEEDED)
        for name in ("bin/python", "bin/python3"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, str(program)
            tar.addfile(link)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, source: Path, target: str, left_away: set[str]) -> None:
    def wanted(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(entry.name)
        is_foreign = path.parent.name == "locale-data" and path.name.partition(".")[0] not in ("root", "en", "en_US")
        return None if path.name in left_away or path.suffix == ".map" or is_foreign else entry

    tar.add(source, target.lstrip("/"), filter=wanted)


def _linked(binaries: list[Path]) -> set[str]:
    """The shared libraries that these need and this machine has."""
    told = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True).stdout
    return {os.path.normpath(word) for word in told.split() if _is_library(word)}


def _is_library(word: str) -> bool:
    return word.startswith("/") and not word.endswith(":") and ".so" in word and Path(word).exists()
