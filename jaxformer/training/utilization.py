"""Estimates how much of the devices' speed and memory a run uses."""

import resource
import sys
from collections.abc import Mapping
from typing import Any

import jax

from jaxformer.data.examples import Feature
from jaxformer.models.base import Model

PEAK_FLOPS = {
    "NVIDIA B200": 2250e12,
    "NVIDIA H200": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA A100": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
    "NVIDIA A10G": 70e12,
    "NVIDIA A10": 125e12,
    "TPU7x": 2307e12 / 2,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
    "TPU v2": 45e12,
}
"""Peak FLOPs per second of dense bfloat16 products, as stated by the vendors. Keys are prefixes of JAX's device kinds;
more specific ones come first. A device of TPU7x is half a chip.
"""


def peak_flops(device: Any) -> float | None:
    """Returns the peak FLOPs per second of a device, as stated by its vendor. None if the device is not in the
    table.
    """
    return next((peak for kind, peak in PEAK_FLOPS.items() if device.device_kind.startswith(kind)), None)


def step_flops(model: Model, row: Mapping[str, Feature], batch: int, trained: float = 1.0) -> float:
    """Returns the FLOPs of the matrix products of a training step, based on `Model.flops`.

    The backward pass computes two kinds of gradients: those of the activations take as many operations as the forward
    pass, those of the parameters take `trained` times as many. The optimizer and rematerialisation are not counted.

    Args:
      model: Model that is trained.
      row: Layouts of the arrays in a batch row, as `Task.row` declares them.
      batch: Number of rows.
      trained: Fraction of the parameters that are trained.
    """
    sizes = {"b": batch}
    for name, spec in model.inputs().items():
        if name in row:
            sizes |= zip(spec.axes[1:], (row[name].capacity, *row[name].shape), strict=True)
    return (2.0 + trained) * model.flops(sizes)


def memory_in_use() -> int:
    """Returns the peak memory use of this process in bytes: that of its first device, or of the host if this device is
    a CPU.
    """
    statistics: dict[str, Any] = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics:
        return statistics["peak_bytes_in_use"]
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
