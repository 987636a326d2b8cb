"""One real stitched model and one of a few kilobytes, for all tests of the artifact."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align.maps import Chain, Map, make_map
from align.preprocess import Center, Unit
from registry import stitched, stitched_model
from registry.datasets import create as dataset
from registry.encoders import create
from registry.stitched.folder import sign

LABELS = ["animal", "food", "face", "vehicle", "musical instrument"]

TEMPLATES = ["{}", "a picture of a {}", "an emoji: {}"]
CARD = {"data": "200 emoji", "scores": {"recall_at_10": [0.4, 0.3, 0.5]}}
OTHER_LABELS = ("a cat", "a red car, seen from the side", "Zürich")


@dataclass
class Parts:
    """Two real encoders and 200 emoji seen by both."""

    image: Any
    text: Any
    pictures: list[Image.Image]
    source: np.ndarray
    target: np.ndarray

    def export(self, folder: Path, fitted: Map, **changed: Any) -> Path:
        """Export with the labels and templates of this module."""
        given = {
            "image": self.image,
            "text": self.text,
            "map": fitted,
            "labels": LABELS,
            "templates": TEMPLATES,
            "card": CARD,
            "references": self.source,
        }
        return stitched.export(folder, **(given | changed))

    def scores(self, fitted: Map, labels: tuple[str, ...] | list[str]) -> np.ndarray:
        """Cosines (n, classes) of the first pictures, written out: this is what the artifact has to give."""
        prompts = [template.replace("{}", label) for label in labels for template in TEMPLATES]
        units = unit(fitted.target_to_shared(self.text.embed(prompts)))
        prototypes = unit(units.reshape(len(labels), len(TEMPLATES), -1).mean(axis=1))
        return unit(fitted.source_to_shared(self.source[: len(self.pictures)])) @ prototypes.T


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="package")
def parts(session_home: Path) -> Parts:
    emoji = dataset("emoji", languages=["en"])
    chosen = range(0, len(emoji.keys), len(emoji.keys) // 200)[:200]
    pictures: list[Any] = [emoji.read("image", index) for index in chosen]
    names = [emoji.read("en", index) for index in chosen]
    image: Any = create("efficientnet-lite0")
    text: Any = create("minilm-l6")
    source = np.concatenate([image.embed(pictures[start : start + 32]) for start in range(0, 200, 32)])
    target = np.concatenate([text.embed(names[start : start + 64]) for start in range(0, 200, 64)])
    return Parts(image, text, pictures[:40], source, target)


@pytest.fixture(scope="package")
def ridge(parts: Parts) -> Map:
    return make_map("ridge").fit(parts.source, parts.target)


@pytest.fixture(scope="package")
def folder(parts: Parts, ridge: Map, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One exported model, never changed; removed afterwards because it has 100 MB."""
    place = tmp_path_factory.mktemp("exported")
    yield parts.export(place / "stitched", ridge)
    shutil.rmtree(place)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the model to damage."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    yield target
    shutil.rmtree(target)


@pytest.fixture(scope="package")
def model(folder: Path) -> stitched_model.Model:
    return stitched_model.load(folder)


KINDS: dict[str, Callable[[], Map]] = {
    "ridge": lambda: make_map("ridge"),
    "procrustes": lambda: make_map("procrustes"),
    "cca": lambda: make_map("cca", n_components=40, regularisation=1.0),
    "relative": lambda: make_map("relative"),
    "optimal_transport": lambda: make_map("optimal_transport", init="procrustes"),
    "chain": lambda: Chain([Unit(), Center()], make_map("procrustes"), [Center(), Unit()]),
}


def network(end: str, opset: int, layout: str = "NCHW") -> Any:
    """A small network of pictures that ends with a linear layer, or does not, or gives away what is before it."""
    from onnx import TensorProto, checker, helper, numpy_helper

    random = np.random.default_rng(0)
    weight, bias = random.standard_normal((3, 5)).astype(np.float32), random.standard_normal(5).astype(np.float32)
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    nodes = [
        helper.make_node("Sigmoid", ["pixels"], ["scores"]),  # names that the export uses itself
        helper.make_node("ReduceMax", ["scores", "axes"] if opset >= 18 else ["scores"], ["pooled"], keepdims=0,
                         **({} if opset >= 18 else {"axes": axes})),
    ]  # fmt: skip
    if end == "gemm":
        nodes += [helper.make_node("Gemm", ["pooled", "turned", "bias"], ["out"], transB=1, alpha=0.5, beta=2.0)]
    elif end == "nothing":
        nodes += [
            helper.make_node("MatMul", ["pooled", "weight"], ["dense"]),
            helper.make_node("Tanh", ["dense"], ["out"]),
        ]
    else:
        nodes += [
            helper.make_node("MatMul", ["pooled", "weight"], ["dense"]),
            helper.make_node("Add", ["bias", "dense"], ["out"]),
        ]
    tensors = {"weight": weight, "turned": np.ascontiguousarray(weight.T), "bias": bias, "axes": np.array(axes)}
    used = {name for node in nodes for name in node.input}
    outputs = ["out", "dense"] if end == "shared" else ["out"]
    shape = ["n", 3, 8, 8] if layout == "NCHW" else ["n", 8, 8, 3]
    graph = helper.make_graph(
        nodes, "network", [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 5]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items() if name in used],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    checker.check_model(model)
    return model


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory, session_home: Path) -> Path:
    """A stitched model of a few kilobytes, as a folder and as one ONNX file: to be damaged a thousand times."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    onnx.save(network("gemm", 17), str(place / "image.onnx"))
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "cat": 2, "dog": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(place / "tokenizer.json"))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["tokens"]),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "two"], ["weights"]),
            helper.make_node("Mul", ["tokens", "weights"], ["kept"]),
            helper.make_node("ReduceMean", ["kept"], ["out"], axes=[1], keepdims=0),
        ],
        "texts",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "l"]) for name in stitched_model.TEXT_INPUTS],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(random.standard_normal((4, 4)).astype(np.float32), "table"),
            numpy_helper.from_array(np.array([2]), "two"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(place / "text.onnx"))
    image: Any = create("onnx", path=place / "image.onnx", modality="image", size=8, mean=(127.0,) * 3, std=(64.0,) * 3)
    text: Any = create("onnx", path=place / "text.onnx", modality="text", tokenizer=place / "tokenizer.json")
    fitted = make_map("ridge").fit(random.standard_normal((30, 5)), random.standard_normal((30, 4)))
    stitched.export(
        place / "folder",
        image=image,
        text=text,
        map=fitted,
        labels=["cat", "dog"],
        templates=["{}"],
        card={},
        references=random.standard_normal((30, 5)),
    )
    stitched.write(place / "folder", place / "one", "onnx")
    return place


def rewritten(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    (folder / "CHECKSUMS").unlink()
    sign(folder)
