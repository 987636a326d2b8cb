"""Damaged, forged and older folders: refused, harmless, or read; never run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from registry import stitched, stitched_model
from registry.errors import UserError
from registry.stitched.folder import sign
from registry.stitched_model import DamagedModel
from tests.registry.stitched.conftest import png, rewritten


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
    (copy / "config.json").write_text(json.dumps(config | {"format": 3}))
    with pytest.raises(DamagedModel, match="has format 3; this code reads 1 and 2"):
        stitched_model.Model(copy)


WHOLE = [("folder", name) for name in (*stitched_model.FILES, stitched_model.REFERENCES, "README.md")] + [
    ("one", "model.onnx")
]


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
        sign(folder)
        refused += _refused_or_unharmed(folder, picture, f"{name}, round {round_}")
    assert refused > 5 or name == "README.md"


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
        ("config.json", json.dumps(config | {"format": 3}), "has format 3; this code reads 1 and 2"),
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
        (
            "prototypes.safetensors",
            save({"prototypes": np.zeros((2, 9), np.float32)}),
            "are not those of its prototypes",
        ),
        ("prototypes.safetensors", b"\x80\x04cos\nsystem\n(S'touch ran'\ntR.", "can be read"),
        ("source.onnx", elsewhere("../secret"), "can be read"),
        ("source.onnx", elsewhere(str(tmp_path / "secret")), "can be read"),
        ("source.onnx", foreign.SerializeToString(), "can be read"),
        ("tokenizer.json", "{}", "can be read"),
    ):
        shutil.copytree(tiny / "folder", folder)
        rewritten(folder, name, content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=message) as caught:
            stitched.load(folder)
        assert "\n" not in str(caught.value)
        shutil.rmtree(folder)
    model = onnx.load(tiny / "one" / "model.onnx")
    about = json.loads(model.metadata_props[0].value)
    for props, message in (
        ({"suture": json.dumps(about | {"format": 3})}, "has format 3; this code reads 1 and 2"),
        ({"suture": "{"}, "can be read"),
        ({}, "can be read"),
    ):
        shutil.copytree(tiny / "one", one)
        del model.metadata_props[:]
        helper.set_model_props(model, props)
        rewritten(one, "model.onnx", model.SerializeToString())
        with pytest.raises(UserError, match=message):
            stitched.load(one)
        shutil.rmtree(one)


def test_a_renamed_class_is_noticed_even_with_new_checksums(tiny: Path, tmp_path: Path) -> None:
    import onnx

    folder, one = tmp_path / "model", tmp_path / "one"
    shutil.copytree(tiny / "folder", folder)
    config = json.loads((folder / "config.json").read_text())
    prototypes = stitched_model.load(folder).prototypes()
    for labels in (["dog", "cat"], ["cat", "bird"]):
        # With the old digest, and with one that somebody has made for the new names.
        for changed in ({}, {"digest": stitched_model.digest(labels, prototypes)}):
            rewritten(folder, "config.json", json.dumps(config | {"labels": labels} | changed).encode())
            with pytest.raises(UserError, match="the class names of .* are not those of its prototypes"):
                stitched.load(folder)
    model = onnx.load(tiny / "one" / "model.onnx")
    about = json.loads(model.metadata_props[0].value)
    shutil.copytree(tiny / "one", one)
    onnx.helper.set_model_props(model, {"suture": json.dumps(about | {"labels": ["dog", "cat"]})})
    rewritten(one, "model.onnx", model.SerializeToString())
    with pytest.raises(UserError, match="the class names of .* are not those of its prototypes"):
        stitched.load(one)


def test_a_file_without_a_checksum_is_not_read(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for name in ("image.onnx", stitched_model.REFERENCES):
        shutil.copytree(tiny / "folder", folder)
        sums = json.loads((folder / "CHECKSUMS").read_text())
        del sums[name]
        (folder / "CHECKSUMS").write_text(json.dumps(sums))
        with pytest.raises(UserError, match=f"'{name}' .* has no checksum"):
            stitched.load(folder)
        shutil.rmtree(folder)


def test_a_model_of_the_first_format_is_read_and_written_anew(tmp_path: Path) -> None:
    """What version 0.1.0 wrote, with the scores that it gave."""
    first = Path(__file__).parents[1] / "data" / "stitched_v1"
    images = [png(Image.new("RGB", (9, 9), colour)) for colour in ("red", "blue")]
    expected = [[-0.5532964, -0.3178675], [-0.4849900, -0.2229219]]
    others = [[-0.4826812, -0.5278878]]
    for kind in ("folder", "one"):
        np.testing.assert_allclose(stitched.load(first / kind).scores(images), expected, rtol=1e-4)
    stitched.write(first / "folder", tmp_path / "second", "folder")
    stitched.write(first / "folder", tmp_path / "pyfunc", "mlflow")
    for folder in (first / "folder", tmp_path / "second", tmp_path / "pyfunc" / "artifacts" / "stitched"):
        model = stitched.load(folder)
        assert model.config["format"] == (1 if folder.parent == first else 2)
        np.testing.assert_allclose(model.scores(images), expected, rtol=1e-4)
        np.testing.assert_allclose(model.scores(images[:1], ["dog", "cat cat dog"]), others, rtol=1e-4)
        with pytest.raises(stitched_model.BadInput, match="no references, which the rule 'csls' needs"):
            model.predict(images, rule="csls")


def test_code_beside_a_model_is_never_run(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The MLflow model's Python file is for MLflow; here only the files that are checked are read."""
    from fastapi.testclient import TestClient

    from registry.registered import find

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
