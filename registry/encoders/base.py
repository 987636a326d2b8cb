"""What every encoder offers: it embeds items of one modality, and says exactly what it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL.Image import Image

if TYPE_CHECKING:
    from registry.encoders.images import ImagePreprocess

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


@runtime_checkable
class Exportable(Protocol):
    """An encoder that can travel in a stitched model; see the two protocols below for its other half."""

    def onnx_path(self) -> Path:
        """An ONNX file with a dynamic batch; its first output is the float32 embedding (batch, dimension)."""
        ...


@runtime_checkable
class ExportableImage(Exportable, Protocol):
    """Its graph has one input: the float32 batch that `preprocess` makes."""

    preprocess: ImagePreprocess


@runtime_checkable
class ExportableText(Exportable, Protocol):
    """Its graph has the int64 inputs ``input_ids`` and ``attention_mask``, both (batch, length)."""

    max_length: int
    """Tokens that a text is truncated to, special ones included; it is padded to the batch's longest."""

    def tokenizer_path(self) -> Path:
        """A ``tokenizer.json`` of the `tokenizers` library."""
        ...


@runtime_checkable
class FromHub(Protocol):
    """An encoder whose weights came from the Hugging Face hub; both are None when they came from disk."""

    repo: str | None
    revision: str | None
