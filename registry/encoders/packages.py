"""Finding the files and versions of installed packages without importing them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

from registry.errors import MissingPackage


def installed(distribution: str) -> bool:
    """Whether the package that this distribution brings can be imported (not whether it imports well)."""
    return importlib.util.find_spec(distribution.replace("-", "_")) is not None


def folder(distribution: str, extra: str = "models") -> Path:
    """Where the package lies. Raises `MissingPackage`, which names `extra`, when it is not installed."""
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise MissingPackage("this encoder", distribution, extra)
    return Path(spec.origin).parent


def versions(*distributions: str) -> str:
    """For example ``torch 2.14.1, timm 1.0.31``: an encoder's `backend`."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)
