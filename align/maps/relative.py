"""Relative maps: both spaces are described by their similarities to the same anchors."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from array_api_compat import array_namespace

from align.maps.base import Array, Map, like


class Relative(Map):
    """Relative representation (P062; Moschella et al. 2022): r(x)_j = cos(x, a_j) over the anchors a_j.

    Both sides are led to the shared space of d = n_anchors similarities; `transform` is `source_to_shared`.

    Parameters
    ----------
    n_anchors : how many of the given anchors to describe by, drawn at random, or None for all of them.
    center : subtract the anchors' mean before the cosine. Without it spaces whose mean is far from zero
        have all similarities alike.
    random_state : of the draw.

    Attributes
    ----------
    source_anchors_, target_anchors_ : (n_anchors, d) unit rows.
    source_mean_, target_mean_ : what is subtracted first.
    """

    into_target: ClassVar[bool] = False

    def __init__(self, *, n_anchors: int | None = None, center: bool = True, random_state: int = 0) -> None:
        self.n_anchors = n_anchors
        self.center = center
        self.random_state = random_state

    def fit(self, X: Array, Y: Array) -> Self:
        """Take the anchors from paired rows X (n, d_source), Y (n, d_target).

        An anchor that is zero on either side (after centring) has no direction, and is left out with a warning.
        Raises ValueError where n_anchors is not between 1 and the number of the others.
        """
        X, Y = self._check_fit(X, Y)
        self.source_mean_, self.target_mean_ = (Z.mean(0, dtype=np.float64) * self.center for Z in (X, Y))
        (source, first), (target, second) = _directions(X, self.source_mean_), _directions(Y, self.target_mean_)
        usable = np.flatnonzero(first & second)
        wanted = len(usable) if self.n_anchors is None else self.n_anchors
        if not 1 <= wanted <= len(usable):
            raise ValueError(f"n_anchors must be between 1 and the {len(usable)} given that are not zero, got {wanted}")
        if self.n_anchors is not None:
            usable = np.sort(np.random.default_rng(self.random_state).permutation(usable)[:wanted])
        self.source_anchors_, self.target_anchors_ = source[usable], target[usable]
        self._fingerprint(self.source_anchors_, self.target_anchors_)
        zero = len(X) - int((first & second).sum())
        warnings = [f"{zero} anchors are zero after centring, have no direction and were left out"] * (zero > 0)
        self.report_ = {"n": len(self.source_anchors_), "warnings": warnings}
        return self

    def _relate(self, X: Array, mean: np.ndarray, anchors: np.ndarray) -> Array:
        xp = array_namespace(X)
        X = X - like(mean, X)
        norms = xp.linalg.vector_norm(X, axis=1, keepdims=True)
        return (X / xp.where(norms > 0, norms, xp.ones_like(norms))) @ like(anchors, X).T

    def _source_to_shared(self, X: Array) -> Array:
        return self._relate(X, self.source_mean_, self.source_anchors_)

    def _target_to_shared(self, Y: Array) -> Array:
        return self._relate(Y, self.target_mean_, self.target_anchors_)

    _transform = _source_to_shared

    def _onnx(self, graph: Any, x: str) -> str:
        centred = graph.node("Sub", x, graph.constant(self.source_mean_))
        norm = graph.node("ReduceL2", centred, axes=[1], keepdims=1)
        safe = graph.node("Max", norm, graph.constant(np.float32(np.finfo(np.float32).tiny)))
        return graph.node("MatMul", graph.node("Div", centred, safe), graph.constant(self.source_anchors_.T))


def _directions(X: np.ndarray, mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (n, d) of X about the mean, and whether each (n,) has a direction at all."""
    centred = X - mean
    norms = np.linalg.norm(centred, axis=1)
    # A row that equals the mean is as good as zero: its direction is rounding.
    real = norms > 10 * np.finfo(X.dtype).eps * float(np.abs(X).max())
    return centred / np.where(real, norms, 1)[:, None], real
