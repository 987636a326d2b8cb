"""What every encoder offers: it embeds items of one modality, and says exactly what it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL.Image import Image

Modality: TypeAlias = Literal["image", "text"]
Item: TypeAlias = Image | str
Device: TypeAlias = Literal["auto", "cpu", "cuda"]


class Encoder(Protocol):
    """A pretrained model seen as a function from items to vectors.

    Making one is cheap: weights are hashed, not loaded. The model itself is loaded by the first `embed`.
    """

    name: str
    """As in the catalog, e.g. ``efficientnet-lite0``; part of the embedding's identity."""
    modality: Modality
    dimension: int
    preprocessing: str
    """What happens to an item before the network, in one line; part of the embedding's identity."""
    backend: str
    """The library that runs it and its version, e.g. ``onnxruntime 1.23.0``; part of the identity."""
    licence: str
    weights: str
    """SHA-256 of the weights, in hex; part of the identity."""
    batch_size: int

    def embed(self, batch: Sequence[Item]) -> np.ndarray:
        """Embed one batch: RGB pictures or texts in, a float32 array of shape (len(batch), dimension) out."""
        ...


@runtime_checkable
class HasHead(Protocol):
    """An encoder whose package also carries the classifier that it was trained with."""

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """The classifier's weight (classes, dimension) and bias (classes,), float32: logits = x @ W.T + b."""
        ...
