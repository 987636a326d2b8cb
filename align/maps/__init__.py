"""Every map by the name that configurations and the command line use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from align.estimator import load_folder
from align.maps.base import AffineMap, Map
from align.maps.compose import Chain
from align.maps.linear import Identity, LeastSquares, Ridge
from align.maps.orthogonal import Procrustes
from align.maps.relative import Relative
from align.maps.subspace import CCA
from align.maps.transport import GromovWasserstein, OptimalTransport

MAPS: dict[str, type[Map]] = {
    "identity": Identity,
    "least_squares": LeastSquares,
    "ridge": Ridge,
    "procrustes": Procrustes,
    "cca": CCA,
    "relative": Relative,
    "optimal_transport": OptimalTransport,
    "gromov_wasserstein": GromovWasserstein,
}

__all__ = ["CCA", "MAPS", "AffineMap", "Chain", "Map", "load_map", "make_map"]


def make_map(name: str, **parameters: Any) -> Map:
    """An unfitted map by its name. Raises ValueError, naming what is valid, for an unknown name or parameter."""
    if name not in MAPS:
        raise ValueError(f"unknown map '{name}'; valid: {', '.join(MAPS)}")
    valid = MAPS[name]().get_params()
    for parameter in parameters:
        if parameter not in valid:
            raise ValueError(f"map '{name}' has no parameter '{parameter}'; valid: {', '.join(sorted(valid))}")
    return MAPS[name](**parameters)


def load_map(folder: str | Path) -> Map:
    """Load a map that `Map.save` wrote, bit for bit. Only the classes of this package are ever made.

    Raises ValueError for a folder that is no map, is damaged, or was written by a newer format.
    """
    return load_folder(folder, {cls.__name__: cls for cls in (*MAPS.values(), Chain)})
