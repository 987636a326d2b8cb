"""Every map by the name that configurations and the command line use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from align.maps.base import FORMAT, AffineMap, Map
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

__all__ = ["MAPS", "AffineMap", "Map", "load_map", "make_map"]


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
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text())
        name, version = config["class"], config["format"]
        parameters, _, _ = config["parameters"], config["learned"].items(), config["weights"].lower()
    except FileNotFoundError:
        raise ValueError(f"{folder} is no saved map: it has no config.json") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {error}") from None
    if version != FORMAT:
        raise ValueError(f"{folder} has format {version}; this version reads format {FORMAT}")
    classes = {cls.__name__: key for key, cls in MAPS.items()}
    if name not in classes:
        raise ValueError(f"{folder} holds a map of class '{name}'; valid: {', '.join(classes)}")
    return make_map(classes[name], **parameters)._restore(folder, config)
