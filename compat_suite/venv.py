"""An environment for each list of versions that recipes name, with this checkout of Headrace in it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def provide(requirements: Path, directory: Path) -> Path:
    """Makes the environment unless it is there with these very requirements; returns its interpreter.

    Args:
        requirements: ``name==version`` lines, complete: nothing may be chosen by the day on which it is installed.
        directory: where the environment lives.

    Raises:
        subprocess.CalledProcessError: venv or pip failed; their output has been printed.
    """
    python = directory / "bin" / "python"
    stamp = directory / "compat-stamp"
    wanted = hashlib.sha256(requirements.read_bytes() + str(ROOT).encode() + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(requirements)], check=True)
    subprocess.run([*pip, "--constraint", str(requirements), "--editable", str(ROOT)], check=True)
    stamp.write_text(wanted)
    return python
