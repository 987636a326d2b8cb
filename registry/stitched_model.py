"""A stitched model's only code: picture files in, class names and scores out, as an MLflow pyfunc or alone.

It needs onnxruntime, NumPy, Pillow, tokenizers and safetensors; a folder of them and ONNX is all it reads:

    from stitched_model import load
    model = load("artifacts/stitched")
    model.predict([open("cat.jpg", "rb").read()], labels=["a cat", "a dog"], top_k=2)

A picture goes through image.onnx and source.onnx, a class name in every template through text.onnx and
target.onnx, both into one shared space. A class's prototype is the unit mean of its prompts' unit vectors; a
score is the cosine of picture and prototype, from -1 to 1: it ranks classes and is no probability.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from tokenizers import Tokenizer

FORMAT = 1
GRAPHS = ("image.onnx", "source.onnx", "text.onnx", "target.onnx")
FILES = (*GRAPHS, "tokenizer.json", "prototypes.safetensors", "config.json")
TEXT_INPUTS = ("input_ids", "attention_mask")
BATCH = 32
MAX_SIZE = 4096
MAX_PIXELS = 89_478_485  # a small file can unpack into gigabytes


class DamagedModel(ValueError):
    """A file of the model is missing, changed since the export, or outside its folder."""


class BadInput(ValueError):
    """A picture or a parameter is not what the model takes; the message says which."""


def load(folder: str | Path) -> Model:
    """Check every file against CHECKSUMS, then load the model; raises `DamagedModel`."""
    verify(folder)
    with _readable(folder):
        model = Model(Path(folder))
        # A graph that can be read may still not run, or give something else.
        expected = (1, model.config["dimensions"]["shared"])
        if not model.embed_pixels(_blank(model.config)).shape == model.embed_texts(["a"]).shape == expected:
            raise DamagedModel(f"'{folder}' does not give vectors of shape {expected}, as its config.json says")
        return model


@contextmanager
def _readable(folder: str | Path) -> Iterator[None]:
    """What goes wrong in reading the files of a model, as `DamagedModel`."""
    try:
        yield
    except DamagedModel:
        raise
    # Files whose checksums somebody has renewed: parsers of corrupt bytes raise nearly anything.
    except Exception as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DamagedModel(f"'{folder}' is no stitched model that can be read: {why}") from None


def verify(folder: str | Path, files: Sequence[str] = FILES) -> None:
    """Raise `DamagedModel`, naming the file, unless all files are those that were exported, `files` among them."""
    folder = Path(folder)
    try:
        sums = json.loads((folder / "CHECKSUMS").read_bytes())
    except FileNotFoundError:
        raise DamagedModel(f"'{folder}' is no stitched model: it has no CHECKSUMS") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedModel(f"CHECKSUMS of '{folder}' cannot be read: {error}") from None
    if not isinstance(sums, dict):
        raise DamagedModel(f"CHECKSUMS of '{folder}' is not a list of files")
    for name in dict.fromkeys((*files, *sums)):
        path = folder / name
        # A link counts as outside, wherever it leads: an export has none.
        if Path(name).name != name or path.is_symlink():
            raise DamagedModel(f"'{name}' is not a file inside '{folder}'")
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError) as error:
            why = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise DamagedModel(f"'{name}' of the stitched model '{folder}' {why}") from None
        if found != sums.get(name):
            raise DamagedModel(f"'{name}' of the stitched model '{folder}' is damaged: its checksum differs")


class Model:
    """A zero-shot classifier of pictures. Threads may share it."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
        if self.config["format"] != FORMAT:
            raise DamagedModel(f"'{folder}' has format {self.config['format']}; this code reads {FORMAT}")
        self.labels: tuple[str, ...] = _names(self.config["labels"])
        self._prototypes = load_file(folder / "prototypes.safetensors")["prototypes"]
        expected = (len(self.labels), self.config["dimensions"]["shared"])
        if self._prototypes.shape != expected:
            raise DamagedModel(
                f"'{folder}' has prototypes of shape {self._prototypes.shape}; its config.json says {expected}"
            )
        self._image, self._source, self._text, self._target = (_session(folder / name) for name in GRAPHS)
        self._tokenizer = _tokenizer(folder, self.config["max_length"])
        self._remembered = lru_cache(maxsize=16)(self._embed_labels)

    def predict(
        self, images: Sequence[bytes], labels: Sequence[str] | None = None, top_k: int = 1
    ) -> list[list[tuple[str, float]]]:
        """For each picture its `top_k` best (label, cosine), best first, or all where there are fewer."""
        if top_k < 1:
            raise BadInput(f"top_k must be at least 1, not {top_k}")
        names = self.labels if labels is None else _names(labels)
        scores = self.scores(images, names)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        return [[(names[i], float(row[i])) for i in order] for row, order in zip(scores, best, strict=True)]

    def scores(self, images: Sequence[bytes], labels: Sequence[str] | None = None) -> np.ndarray:
        """Cosines (n, classes), float32. Raises `BadInput`, naming the row, for what is no picture."""
        return self.embed_images(images) @ self.prototypes(labels).T

    def prototypes(self, labels: Sequence[str] | None = None) -> np.ndarray:
        """Unit rows (classes, d) in the shared space; other class names than the stored are embedded."""
        names = self.labels if labels is None else _names(labels)
        return self._prototypes if names == self.labels else self._remembered(names)

    def embed_images(self, images: Sequence[bytes]) -> np.ndarray:
        """Picture files' content to unit vectors (n, d) in the shared space, in small batches."""
        if len(images) == 0:
            raise BadInput("no picture was given")
        return np.concatenate(
            [
                self.embed_pixels(
                    np.stack(
                        [self.pixels(image, row) for row, image in enumerate(images[start : start + BATCH], start)]
                    )
                )
                for start in range(0, len(images), BATCH)
            ]
        )

    def pixels(self, image: bytes, row: int = 0) -> np.ndarray:
        """One picture file's content as the network's uint8 RGB (size, size, 3); raises `BadInput` with the row."""
        return _crop(decode(row, image), self.config["preprocess"])

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels (n, size, size, 3) to unit vectors (n, d) in the shared space."""
        vectors = _run(self._image, _normalise(pixels, self.config["preprocess"]))
        return _unit(_run(self._source, vectors))

    def tokens(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and their mask, int64 (n, length)."""
        encoded = self._tokenizer.encode_batch(list(texts))
        ids = np.array([text.ids for text in encoded], dtype=np.int64)
        return ids, np.array([text.attention_mask for text in encoded], dtype=np.int64)

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts to unit vectors (n, d) in the shared space, in small batches."""
        vectors = [_run(self._text, *self.tokens(texts[at : at + BATCH])) for at in range(0, len(texts), BATCH)]
        return _unit(_run(self._target, np.concatenate(vectors)))

    def _embed_labels(self, labels: tuple[str, ...]) -> np.ndarray:
        prompts = [template.replace("{}", label) for label in labels for template in self.config["templates"]]
        units = self.embed_texts(prompts)
        return _unit(units.reshape(len(labels), -1, units.shape[1]).mean(axis=1))


def decode(row: int, data: bytes) -> Image.Image:
    """A picture file's content as upright RGB, transparency on white; raises `BadInput`, naming the row."""
    if not isinstance(data, bytes | bytearray | memoryview):
        raise BadInput(f"row {row}: the content of a picture file is needed, as bytes, not {type(data).__name__}")
    try:
        with Image.open(io.BytesIO(data)) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ValueError(f"{file.width} x {file.height} pixels are too many")
            picture: Image.Image = ImageOps.exif_transpose(file)
            if picture.mode == "F":
                raise ValueError("floating-point values have no known range")
            if picture.mode.startswith("I"):
                values = np.asarray(picture)
                if values.min() < 0 or values.max() > 65535:
                    raise ValueError("32-bit values have no known range")
                picture = Image.fromarray((values // 257).astype(np.uint8))
            elif picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
                picture = picture.convert("RGBA")
                picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            return picture.convert("RGB")
    except Exception as error:  # decoders of corrupt bytes raise nearly anything
        known = not isinstance(error, Image.UnidentifiedImageError)
        why = str(error) if known else f"{len(data)} bytes of no known format"
        raise BadInput(f"row {row}: the picture cannot be decoded ({why})") from None


def _crop(picture: Image.Image, how: dict[str, Any]) -> np.ndarray:
    """The shorter side resized, the centre cropped: uint8 (size, size, 3)."""
    shorter, size = min(picture.size), how["size"]
    width, height = (int(side * how["resize"] / shorter + 0.5) for side in picture.size)
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling[how["interpolation"].upper()])
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(picture)[top : top + size, left : left + size]


def _blank(config: dict[str, Any]) -> np.ndarray:
    """A black picture of the network's size; raises `DamagedModel` for a size that would fill the memory."""
    size, resize = config["preprocess"]["size"], config["preprocess"]["resize"]
    if not 0 < size <= resize <= MAX_SIZE:
        raise DamagedModel(f"config.json has pictures of {size} pixels from {resize}, not of at most {MAX_SIZE}")
    return np.zeros((1, size, size, 3), np.uint8)


def _normalise(pixels: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    """(pixel * white / 255 - mean) / std in the network's channel order and layout, float32."""
    std = np.asarray(how["std"])
    scale = (how["white"] / 255 / std).astype(np.float32)
    shift = (np.asarray(how["mean"]) / std).astype(np.float32)
    if how["channels"] == "BGR":
        pixels = pixels[..., ::-1]
    if how["layout"] == "NCHW":
        pixels, scale, shift = pixels.transpose(0, 3, 1, 2), scale[:, None, None], shift[:, None, None]
    batch = np.empty(pixels.shape, dtype=np.float32)
    np.multiply(pixels, scale, out=batch)
    batch -= shift
    return batch


def _tokenizer(folder: Path, max_length: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    padding = tokenizer.padding or {}
    tokenizer.enable_padding(pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
    return tokenizer


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    # Its fallback would print to stdout, and try the same again.
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


def _run(session: onnxruntime.InferenceSession, *batch: np.ndarray) -> np.ndarray:
    # Text graphs take two inputs, in whichever order their file has them.
    names = [value.name for value in session.get_inputs()] if len(batch) == 1 else TEXT_INPUTS
    return session.run([session.get_outputs()[0].name], dict(zip(names, batch, strict=True)))[0]


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms > 0, norms, 1)


def _names(labels: Sequence[str]) -> tuple[str, ...]:
    names = (labels,) if isinstance(labels, str) else tuple(labels)
    if isinstance(labels, str) or not names or not all(isinstance(n, str) and n.strip() for n in names):
        raise BadInput("labels must be a list of class names, at least one and none empty")
    if len(set(names)) < len(names):
        raise BadInput("labels must differ: a class name is there twice")
    return names


# MLflow has imported itself when it loads this file; nobody else has to have it.
if "mlflow" in sys.modules:
    import mlflow
    import pandas as pd
    from mlflow.pyfunc.model import PythonModel

    class StitchedModel(PythonModel):
        """The pyfunc: a column ``image`` of picture files' content in, one row a picture out."""

        def __init__(self) -> None:
            # By folder: MLflow hands over the model through a global, so two threads that load at the same
            # time may be given one instance.
            self._models: dict[str, Model] = {}

        def load_context(self, context: Any) -> None:
            """Verify the checksums, then load."""
            folder = context.artifacts["stitched"]
            self._models[folder] = load(folder)

        def predict(
            self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
        ) -> pd.DataFrame:
            """Columns ``label`` and ``score``, the best class and its cosine.

            `params`: ``labels``, the class names (default: the stored ones); ``top_k``: above 1 the lists
            ``labels`` and ``scores``, best first, come beside them.
            """
            images = list(model_input["image"] if hasattr(model_input, "columns") else model_input)
            given = params or {}
            top_k = int(given.get("top_k", 1))
            try:
                best = self._models[context.artifacts["stitched"]].predict(images, given.get("labels"), top_k)
            except BadInput as error:
                raise mlflow.MlflowException.invalid_parameter_value(str(error)) from error
            answer = pd.DataFrame([row[0] for row in best], columns=["label", "score"])
            if top_k > 1:
                answer["labels"] = [[label for label, _ in row] for row in best]
                answer["scores"] = [[score for _, score in row] for row in best]
            return answer

    mlflow.models.set_model(StitchedModel())
