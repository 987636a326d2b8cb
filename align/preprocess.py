"""What may be done to vectors before a map: centre, unit length, standardise, whiten."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Self

import numpy as np
from array_api_compat import array_namespace
from sklearn.base import TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from align.estimator import FLOATS, Array, Estimator, like, to_numpy


class Step(TransformerMixin, Estimator):
    """A scikit-learn transformer of one space; `transform` gives back what it was given, NumPy or torch."""

    def fit(self, X: Array, y: Any = None) -> Self:
        """Learn from vectors X (n, d), NumPy or torch. Raises ValueError, naming X, for what cannot be learned from."""
        X = validate_data(self, to_numpy(X), dtype=FLOATS, ensure_min_samples=2)
        self._learn(X)
        return self

    def transform(self, X: Array) -> Array:
        """The processed vectors (n, d), in X's library, precision and device."""
        check_is_fitted(self)
        return self._apply(X, self.n_features_in_, "X", self._transform)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "n_features_in_")

    @abstractmethod
    def _learn(self, X: np.ndarray) -> None: ...

    @abstractmethod
    def _transform(self, X: Array) -> Array: ...


class InvertibleStep(Step):
    """A step that can be undone."""

    def inverse_transform(self, X: Array) -> Array:
        """Processed vectors (n, d) back to where they came from."""
        check_is_fitted(self)
        return self._apply(X, self.n_features_in_, "X", self._inverse)

    @abstractmethod
    def _inverse(self, X: Array) -> Array: ...

    @abstractmethod
    def _onnx_inverse(self, graph: Any, x: str) -> str: ...


class Unit(Step):
    """Each vector at length one; a zero vector stays zero. The length is lost: there is no inverse."""

    def _learn(self, X: np.ndarray) -> None:
        pass

    def _transform(self, X: Array) -> Array:
        xp = array_namespace(X)
        norms = xp.linalg.vector_norm(X, axis=1, keepdims=True)
        return X / xp.where(norms > 0, norms, xp.ones_like(norms))

    def _onnx(self, graph: Any, x: str) -> str:
        norms = graph.node("ReduceL2", x, axes=[1], keepdims=1)
        return graph.node("Div", x, graph.node("Max", norms, graph.constant(np.finfo(np.float32).tiny)))


class Center(InvertibleStep):
    """Minus the mean.

    Attributes
    ----------
    mean_ : (d,) float64.
    """

    def _learn(self, X: np.ndarray) -> None:
        self.mean_ = X.mean(0, dtype=np.float64)

    def _transform(self, X: Array) -> Array:
        return X - like(self.mean_, X)

    def _inverse(self, X: Array) -> Array:
        return X + like(self.mean_, X)

    def _onnx(self, graph: Any, x: str) -> str:
        return graph.node("Sub", x, graph.constant(self.mean_))

    def _onnx_inverse(self, graph: Any, x: str) -> str:
        return graph.node("Add", x, graph.constant(self.mean_))


class Standardize(Center):
    """Each coordinate with mean zero and variance one (over n); one that is constant is only centred.

    Attributes
    ----------
    mean_, scale_ : (d,) float64.
    """

    def _learn(self, X: np.ndarray) -> None:
        super()._learn(X)
        spread = X.std(0, dtype=np.float64)
        constant = spread <= 10 * np.finfo(X.dtype).eps * np.abs(self.mean_)
        self.scale_ = np.where(constant, 1.0, spread)

    def _transform(self, X: Array) -> Array:
        return super()._transform(X) / like(self.scale_, X)

    def _inverse(self, X: Array) -> Array:
        return super()._inverse(X * like(self.scale_, X))

    def _onnx(self, graph: Any, x: str) -> str:
        return graph.node("Div", super()._onnx(graph, x), graph.constant(self.scale_))

    def _onnx_inverse(self, graph: Any, x: str) -> str:
        return super()._onnx_inverse(graph, graph.node("Mul", x, graph.constant(self.scale_)))


class Whiten(Center):
    """Symmetric (ZCA) whitening by the covariance S (over n), shrunk to (1 - s) S + s trace(S) / d I.

    Of all whitenings the symmetric one moves vectors least (Kessy, Lewin and Strimmer 2018).

    Parameters
    ----------
    shrinkage : s, from 0 (none: the vectors' covariance becomes the identity) to 1.

    Attributes
    ----------
    mean_ : (d,); matrix_, inverse_ : (d, d) float64.

    Raises (`fit`)
    --------------
    ValueError : without shrinkage, where the vectors do not fill all dimensions.
    """

    def __init__(self, *, shrinkage: float = 0.0) -> None:
        self.shrinkage = shrinkage

    def _learn(self, X: np.ndarray) -> None:
        n, d = X.shape
        if not 0 <= self.shrinkage <= 1:
            raise ValueError(f"shrinkage must be between 0 and 1, got {self.shrinkage}")
        instead = "set shrinkage (0.1, say) or use Standardize"
        if n <= d and not self.shrinkage:
            raise ValueError(
                f"whitening as it is needs more anchors than dimensions, got n_samples = {n} for {d}: {instead}"
            )
        super()._learn(X)
        centred = X - self.mean_
        values, vectors = np.linalg.eigh(centred.T @ centred / n)
        values = np.maximum(values, 0) * (1 - self.shrinkage) + self.shrinkage * max(values.mean(), 0)
        if values[0] <= values[-1] * 1e-12:
            raise ValueError(f"X does not fill its {d} dimensions, and cannot be whitened as it is: {instead}")
        self.matrix_ = (vectors / np.sqrt(values)) @ vectors.T
        self.inverse_ = (vectors * np.sqrt(values)) @ vectors.T

    def _transform(self, X: Array) -> Array:
        return super()._transform(X) @ like(self.matrix_, X)

    def _inverse(self, X: Array) -> Array:
        return super()._inverse(X @ like(self.inverse_, X))

    def _onnx(self, graph: Any, x: str) -> str:
        return graph.node("MatMul", super()._onnx(graph, x), graph.constant(self.matrix_))

    def _onnx_inverse(self, graph: Any, x: str) -> str:
        return super()._onnx_inverse(graph, graph.node("MatMul", x, graph.constant(self.inverse_)))


STEPS: dict[str, type[Step]] = {cls.__name__: cls for cls in (Center, Standardize, Unit, Whiten)}
"""Every step by its class name."""
