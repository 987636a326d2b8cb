"""What every map is: a scikit-learn estimator from one embedding space to another, that saves, loads and exports."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import scipy
import sklearn
from array_api_compat import array_namespace, is_torch_array
from array_api_compat import device as device_of
from safetensors.numpy import load_file, save
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from align.files import write_atomically
from align.moments import Moments

FORMAT = 1
"""Version of the folder that `Map.save` writes."""

Array = Any
"""A NumPy array or a torch tensor."""


def to_numpy(X: Array) -> Any:
    """A NumPy array of the same values; half precision becomes float32. Anything but a tensor passes through."""
    if is_torch_array(X):
        X = X.detach().cpu()
        X = (X if X.dtype.itemsize > 2 else X.float()).numpy()
    return X.astype(np.float32) if isinstance(X, np.ndarray) and X.dtype == np.float16 else X


class Map(TransformerMixin, BaseEstimator):
    """A map from a source space (dimension d_source) to a target space (dimension d_target).

    Learned attributes end in an underscore. `transform` gives back what it was given: NumPy or torch, float16,
    float32 or float64, on the same device. Sources and targets are *compared* in the map's shared space, by
    cosine: `source_to_shared` and `target_to_shared` lead there. For maps into the target space it is the
    target space seen from the anchors' mean.
    """

    paired: ClassVar[bool] = True
    """Whether row i of X and row i of Y must be the same item; otherwise their numbers of rows may differ."""
    into_target: ClassVar[bool] = True
    """Whether `transform` leads into the target space itself, or into a third space that both are led to."""
    min_anchors: ClassVar[int] = 2

    fingerprint_: str
    target_dimension_: int
    report_: dict[str, Any]
    n_features_in_: int

    # --- fitting

    def _check_fit(self, X: Array, Y: Array) -> tuple[np.ndarray, np.ndarray]:
        """Both sides as finite float arrays of two dimensions, with matching rows where the map needs pairs."""
        X, Y = to_numpy(X), to_numpy(Y)
        if Y is None:
            raise ValueError(f"requires y to be passed, but the target y is None: {type(self).__name__} maps X to y")
        X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=self.min_anchors)
        Y = check_array(
            Y, dtype=[np.float64, np.float32], ensure_2d=False, ensure_min_samples=self.min_anchors, input_name="y"
        )
        Y = Y.reshape(len(Y), -1)
        if self.paired and len(X) != len(Y):
            raise ValueError(
                f"{type(self).__name__} needs paired rows: X has {len(X)} rows, y has {len(Y)}; "
                "for unpaired spaces use gromov_wasserstein"
            )
        self.target_dimension_ = Y.shape[1]
        return X, Y

    def _fingerprint(self, *arrays: np.ndarray) -> None:
        """Remember what the map was fitted on, as a digest of these arrays."""
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array).data)
        self.fingerprint_ = digest.hexdigest()

    @abstractmethod
    def fit(self, X: Array, Y: Array) -> Self:
        """Fit on anchors X (n, d_source) and Y (n, d_target); raises ValueError for what cannot be fitted."""

    # --- applying

    def _check(self, X: Array, dimension: int, side: str) -> Array:
        """X as a float array of the given width, in its own library."""
        check_is_fitted(self)
        if not is_torch_array(X):
            X = to_numpy(X)
            if side == "X":
                return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
            X = check_array(X, dtype=[np.float64, np.float32], ensure_2d=dimension > 1, input_name=side)
            X = X.reshape(len(X), -1)
        if X.ndim != 2 or X.shape[1] != dimension:
            what = "features" if side == "X" else "target features"
            raise ValueError(
                f"{side} has {X.shape[-1]} features, but {type(self).__name__} is expecting {dimension} {what} as input"
            )
        xp = array_namespace(X)
        if X.dtype in (xp.float16, getattr(xp, "bfloat16", xp.float16)):
            X = xp.astype(X, xp.float32)
        if not xp.all(xp.isfinite(xp.sum(X))):
            raise ValueError(f"{side} holds NaN or infinity")
        return X

    def _apply(self, X: Array, dimension: int, side: str, function: Any) -> Array:
        given = X
        out = function(self._check(X, dimension, side))
        half = getattr(given, "dtype", None)
        if is_torch_array(given):
            return out.to(half)
        return out.astype(np.float16) if half == np.float16 else out

    def transform(self, X: Array) -> Array:
        """Source vectors (n, d_source) to where the map leads, (n, d_target) for maps into the target space."""
        return self._apply(X, self._width("source"), "X", self._transform)

    def source_to_shared(self, X: Array) -> Array:
        """Source vectors (n, d_source) in the space where they are compared with targets by cosine."""
        return self._apply(X, self._width("source"), "X", self._source_to_shared)

    def target_to_shared(self, Y: Array) -> Array:
        """Target vectors (n, d_target) in the space where they are compared with sources by cosine."""
        return self._apply(Y, self._width("target"), "Y", self._target_to_shared)

    def _width(self, side: str) -> int:
        check_is_fitted(self)
        return self.n_features_in_ if side == "source" else self.target_dimension_

    @abstractmethod
    def _transform(self, X: Array) -> Array: ...

    @abstractmethod
    def _source_to_shared(self, X: Array) -> Array: ...

    @abstractmethod
    def _target_to_shared(self, Y: Array) -> Array: ...

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "target_dimension_")

    # --- keeping

    def _arrays(self) -> dict[str, np.ndarray]:
        """Every learned array, by attribute name."""
        return {k: v for k, v in vars(self).items() if k.endswith("_") and isinstance(v, np.ndarray)}

    def save(self, folder: str | Path) -> None:
        """Write the fitted map to a folder: weights.safetensors and config.json. No pickle, no code.

        The config, which names the weights' checksum, is written last: a folder without it was not finished.
        """
        check_is_fitted(self)
        folder = Path(folder)
        arrays = {name: np.ascontiguousarray(array) for name, array in self._arrays().items() if array.dtype.kind in "fiu"}
        weights = save(arrays)
        learned = {
            name: value
            for name, value in vars(self).items()
            if name.endswith("_") and not name.endswith("__") and isinstance(value, (int, float, str, dict))
        }
        config = {
            "format": FORMAT,
            "class": type(self).__name__,
            "parameters": self.get_params(),
            "learned": learned,
            "weights": hashlib.sha256(weights).hexdigest(),
            "versions": {"numpy": np.__version__, "scipy": scipy.__version__, "scikit-learn": sklearn.__version__},
        }
        try:
            text = json.dumps(config, indent=2)
        except TypeError as error:
            raise ValueError(f"cannot save {self}: a parameter is not a plain value ({error})") from None
        write_atomically(folder / "weights.safetensors", weights)
        write_atomically(folder / "config.json", text.encode())

    def _restore(self, folder: Path, config: dict[str, Any]) -> Self:
        path = folder / "weights.safetensors"
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != config["weights"]:
            raise ValueError(f"{path} is missing or damaged: its checksum is not the one in config.json")
        for name, value in {**load_file(path), **config["learned"]}.items():
            if not name.endswith("_") or name.endswith("__"):
                raise ValueError(f"{folder / 'config.json'}: '{name}' is no learned attribute")
            setattr(self, name, value)
        return self

    # --- exporting

    def to_onnx(self, path: str | Path) -> None:
        """Write `transform` as an ONNX graph: input 'vectors' (n, d_source) float32, output 'mapped'."""
        from align.onnx import Graph

        check_is_fitted(self)
        graph = Graph(self.n_features_in_)
        graph.write(path, self._onnx(graph, "vectors"))

    @abstractmethod
    def _onnx(self, graph: Any, x: str) -> str:
        """Add the nodes of `transform` to the graph, from the value named x; gives the result's name."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        return tags


def like(array: np.ndarray, X: Array) -> Array:
    """A learned array in X's library, precision and device."""
    xp = array_namespace(X)
    if is_torch_array(X):
        return xp.asarray(array, dtype=X.dtype, device=device_of(X))
    return array.astype(X.dtype, copy=False)


class AffineMap(Map):
    """A map x -> (x - source_mean_) @ matrix_ + target_mean_, whatever it was fitted by.

    Attributes
    ----------
    matrix_ : (d_source, d_target) float64.
    source_mean_, target_mean_ : the anchors' means, zero where `center` is False.
    """

    center: bool
    matrix_: np.ndarray
    source_mean_: np.ndarray
    target_mean_: np.ndarray

    def fit(self, X: Array, Y: Array) -> Self:
        """Fit on paired anchors X (n, d_source), Y (n, d_target). Raises ValueError for what cannot be fitted."""
        X, Y = self._check_fit(X, Y)
        return self.fit_moments(Moments.of(X, Y, self._folds(len(X)), center=self.center))

    def _folds(self, n: int) -> np.ndarray | None:
        return None

    def fit_moments(self, moments: Moments) -> Self:
        """Fit from the sums of the anchors alone; they carry folds where the map chooses by cross-validation."""
        if moments.source.centred != self.center:
            raise ValueError(f"center={self.center} needs moments taken with center={self.center}")
        if moments.n < self.min_anchors:
            raise ValueError(f"{type(self).__name__} needs at least {self.min_anchors} anchors, got {moments.n}")
        self.n_features_in_ = moments.source.dimension
        self.target_dimension_ = moments.target.dimension
        self.source_mean_, self.target_mean_ = moments.source.center, moments.target.center
        self._fingerprint(self.source_mean_, self.target_mean_, moments.cross)
        self._solve(moments)
        return self

    @abstractmethod
    def _solve(self, moments: Moments) -> None:
        """Set `matrix_` and `report_`."""

    def _source_to_shared(self, X: Array) -> Array:
        return (X - like(self.source_mean_, X)) @ like(self.matrix_, X)

    def _target_to_shared(self, Y: Array) -> Array:
        return Y - like(self.target_mean_, Y)

    def _transform(self, X: Array) -> Array:
        return self._source_to_shared(X) + like(self.target_mean_, X)

    def _inverse_matrix(self) -> np.ndarray:
        """(d_target, d_source), the Moore-Penrose inverse of `matrix_` unless a map knows better."""
        return np.linalg.pinv(self.matrix_)

    def inverse_transform(self, Y: Array) -> Array:
        """Target vectors (n, d_target) back to the source space; exact where `matrix_` has an inverse."""
        return self._apply(
            Y,
            self._width("target"),
            "Y",
            lambda Y: (Y - like(self.target_mean_, Y)) @ like(self._inverse_matrix(), Y) + like(self.source_mean_, Y),
        )

    def _onnx(self, graph: Any, x: str) -> str:
        centred = graph.node("Sub", x, graph.constant(self.source_mean_))
        mapped = graph.node("MatMul", centred, graph.constant(self.matrix_))
        return graph.node("Add", mapped, graph.constant(self.target_mean_))
