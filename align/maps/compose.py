"""A map with preprocessing before it: steps on either side, fitted, saved and exported with it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from sklearn.base import clone
from sklearn.utils.metaestimators import available_if

from align.estimator import Array, load_folder
from align.maps.base import Map
from align.preprocess import STEPS, InvertibleStep, Step


def _leads_back(chain: Chain) -> bool:
    return hasattr(chain.map, "_inverse") and all(isinstance(s, InvertibleStep) for s in chain.source_steps)


class Chain(Map):
    """Steps on the source, steps on the target, and a map between the processed spaces.

    `transform` undoes the target steps after the map and so leads into the target space; where one of them cannot be
    undone (`Unit`), it leads into the processed target space instead (`into_target` is then False).

    Parameters
    ----------
    source_steps, target_steps : unfitted steps of `align.preprocess`, applied in order; they stay unfitted.
    map : an unfitted map, which stays unfitted.

    Attributes
    ----------
    source_steps_, target_steps_, map_ : the fitted ones.
    """

    def __init__(
        self, source_steps: Sequence[Step] = (), map: Map | None = None, target_steps: Sequence[Step] = ()
    ) -> None:
        self.source_steps = source_steps
        self.map = map
        self.target_steps = target_steps

    @property
    def paired(self) -> bool:  # type: ignore[override]
        """As of the map inside."""
        return self.map is None or self.map.paired

    @property
    def into_target(self) -> bool:  # type: ignore[override]
        """Whether `transform` leads into the target space itself."""
        steps = all(isinstance(step, InvertibleStep) for step in self.target_steps)
        return steps and (self.map is None or self.map.into_target)

    def fit(self, X: Array, Y: Array) -> Self:
        """Fit the steps and then the map on anchors X (n, d_source), Y (m, d_target). Raises as they do."""
        if not isinstance(self.map, Map):
            raise ValueError(f"map must be a map, got {self.map!r}")
        X, Y = self._check_fit(X, Y)
        self.source_steps_, X = _fit(self.source_steps, X)
        self.target_steps_, Y = _fit(self.target_steps, Y)
        self.map_ = clone(self.map).fit(X, Y)
        self.fingerprint_, self.report_ = self.map_.fingerprint_, self.map_.report_
        return self

    def settled(self) -> Self:
        """An unfitted copy with the inner map's cross-validated choices fixed."""
        return clone(self).set_params(map=self.map_.settled())

    def _source_to_shared(self, X: Array) -> Array:
        return self.map_._source_to_shared(_through(self.source_steps_, X))

    def _target_to_shared(self, Y: Array) -> Array:
        return self.map_._target_to_shared(_through(self.target_steps_, Y))

    def _transform(self, X: Array) -> Array:
        out = self.map_._transform(_through(self.source_steps_, X))
        return _undone(self.target_steps_, out) if self.into_target else out

    @available_if(_leads_back)
    def inverse_transform(self, Y: Array) -> Array:
        """Target vectors (n, d_target) back to the source space, where the map and the source steps can be undone."""
        return self._apply(Y, self._width("target"), "Y", self._undo)

    def _undo(self, Y: Array) -> Array:
        return _undone(self.source_steps_, self.map_._inverse(_through(self.target_steps_, Y)))

    def _onnx(self, graph: Any, x: str) -> str:
        for step in self.source_steps_:
            x = step._onnx(graph, x)
        x = self.map_._onnx(graph, x)
        for step in reversed(self.target_steps_) if self.into_target else ():
            x = step._onnx_inverse(graph, x)
        return x

    def _parameters(self, folder: Path) -> dict[str, Any]:
        """Saves each part to a folder of its own; what stands for it is its config's checksum."""

        def save(part: Any, name: str) -> str:
            part.save(folder / name)
            return _checksum(folder / name)

        return {
            "source_steps": [save(step, f"source_{i}") for i, step in enumerate(self.source_steps_)],
            "map": save(self.map_, "map"),
            "target_steps": [save(step, f"target_{i}") for i, step in enumerate(self.target_steps_)],
        }

    def _restore(self, folder: Path, config: dict[str, Any]) -> Self:
        from align.maps import load_map

        def load(name: str, checksum: Any, load_part: Any) -> Any:
            part = load_part(folder / name)
            if _checksum(folder / name) != checksum:
                raise ValueError(f"{folder / name} is not the part that {folder / 'config.json'} was saved with")
            return part

        def steps(side: str, checksums: Any) -> list[Step]:
            return [load(f"{side}_{i}", c, lambda path: load_folder(path, STEPS)) for i, c in enumerate(checksums)]

        self.source_steps_ = steps("source", self.source_steps)
        self.map_ = load("map", self.map, load_map)
        self.target_steps_ = steps("target", self.target_steps)
        self.source_steps, self.map, self.target_steps = map(clone, (self.source_steps_, self.map_, self.target_steps_))
        return super()._restore(folder, config)


def _checksum(folder: Path) -> str:
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()


def _fit(steps: Sequence[Step], X: Array) -> tuple[list[Step], Array]:
    fitted = []
    for step in steps:
        fitted.append(clone(step).fit(X))
        X = fitted[-1].transform(X)
    return fitted, X


def _through(steps: Sequence[Step], X: Array) -> Array:
    for step in steps:
        X = step._transform(X)
    return X


def _undone(steps: Sequence[Any], X: Array) -> Array:
    for step in reversed(steps):
        X = step._inverse(X)
    return X
