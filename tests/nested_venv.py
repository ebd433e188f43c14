"""An environment of its own on top of the one that tests run in: `pip install` changes only it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path


def create(folder: Path) -> dict[str, str]:
    """Make a virtual environment that also sees what is installed here; return its variables.

    `python`, `pip`, `pytest` and `bench` are on its PATH. Packages are built with the setuptools
    that is here, and nothing comes from an index.
    """
    venv.create(folder, symlinks=True)
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    here = sysconfig.get_path("purelib")
    Path(own, "outer.pth").write_text(f"import site; site.addsitedir({here!r})\n")
    python = folder / "bin" / "python"
    for name, module in (("pip", "pip"), ("pytest", "pytest"), ("bench", "bench")):
        script = folder / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{python}" -m {module} "$@"\n')
        script.chmod(0o755)
    return os.environ | {
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PIP_NO_BUILD_ISOLATION": "false",  # pip's way to say --no-build-isolation
        "PIP_NO_INDEX": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }


def run(
    command: str, folder: Path, environment: dict[str, str], *, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in a folder; return its status and what it printed."""
    return subprocess.run(
        [shutil.which("bash") or "sh", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
