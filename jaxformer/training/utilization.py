"""How much of a device's speed and memory a run uses."""

import resource
import sys
from typing import Any

import jax

PEAK_FLOPS = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
    "TPU v2": 45e12,
}
"""Floating-point operations a second of dense bfloat16 products, as the makers state them, by how a device's kind
begins; the more specific kinds first."""


def peak_flops(device: Any) -> float | None:
    """The operations a second that a device's maker states; None if they are not known here."""
    return next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)


def step_flops(parameters: int, trained: int, tokens: int) -> float:
    """Operations of a training step by the usual estimate (Kaplan et al. 2020), 6 a parameter and token.

    That is 2 in the forward pass and 4 in the backward pass: 2 for the activations, and 2 for the gradient of
    parameters that train. Attention scores and the optimizer are not counted.
    """
    return tokens * (4.0 * parameters + 2.0 * trained)


def memory_in_use() -> int:
    """The most bytes that this process has used: of its first device's memory, or on a CPU of the machine's."""
    statistics: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
