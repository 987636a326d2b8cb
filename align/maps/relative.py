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
        """Take the anchors from paired rows X (n, d_source), Y (n, d_target); ValueError for a zero vector."""
        X, Y = self._check_fit(X, Y)
        if self.n_anchors is not None and not 1 <= self.n_anchors <= len(X):
            raise ValueError(f"n_anchors must be between 1 and the {len(X)} given, got {self.n_anchors}")
        chosen = slice(None)
        if self.n_anchors is not None:
            chosen = np.sort(np.random.default_rng(self.random_state).permutation(len(X))[: self.n_anchors])  # type: ignore[assignment]
        self.source_mean_, self.source_anchors_ = self._anchors(X, chosen, "X")
        self.target_mean_, self.target_anchors_ = self._anchors(Y, chosen, "y")
        self._fingerprint(self.source_anchors_, self.target_anchors_)
        self.report_ = {"n": len(self.source_anchors_), "warnings": []}
        return self

    def _anchors(self, X: np.ndarray, chosen: Any, side: str) -> tuple[np.ndarray, np.ndarray]:
        mean = X.mean(0, dtype=np.float64) * self.center
        anchors = X[chosen] - mean
        norms = np.linalg.norm(anchors, axis=1, keepdims=True)
        # A centred copy of the mean is as good as zero: its direction is rounding.
        if not (norms > np.finfo(X.dtype).eps * max(float(np.abs(X).max()), np.finfo(X.dtype).tiny)).all():
            row = int(np.argmin(norms))
            raise ValueError(f"{side}: anchor {row} is a zero vector (after centring) and has no direction; leave it out")
        return mean, anchors / norms

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
