"""Where everything that a run keeps lies: one folder, SUTURE_HOME."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """The folder named by SUTURE_HOME, or ~/.suture. It is made by whoever first writes into it."""
    return Path(os.environ.get("SUTURE_HOME") or Path.home() / ".suture").expanduser().absolute()
