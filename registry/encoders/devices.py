"""The device choice auto, cpu or cuda, as ONNX Runtime and torch want it said."""

from __future__ import annotations

from typing import TYPE_CHECKING

from registry.encoders.base import Device
from registry.errors import UserError

if TYPE_CHECKING:
    import torch


def onnx_providers(device: Device) -> list[str]:
    """ONNX Runtime's providers, best first. Raises `UserError` when cuda is asked for and absent."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if device == "cuda":
        raise UserError(
            "device 'cuda': this ONNX Runtime has none; install 'onnxruntime-gpu', or use device auto or cpu"
        )
    return ["CPUExecutionProvider"]


def torch_device(device: Device) -> torch.device:
    """Raises `UserError` when cuda is asked for and torch sees none."""
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise UserError("device 'cuda': torch sees no GPU here; use device auto or cpu")
    return torch.device("cuda" if available and device != "cpu" else "cpu")
