"""Published specifications of the chips that planning supports: memory sizes, and memory and network bandwidths.

The figures of TPUs are from the pages v4, v5e, v5p, v6e and tpu7x of https://docs.cloud.google.com/tpu/docs. The
figures of GPUs are from the data sheets h100, h200 and dgx-b200 of https://www.nvidia.com/en-us/data-center. Network
bandwidths count only the bytes that a device sends. If a published figure is the sum of both directions, half of it is
used.
"""

import dataclasses
from typing import Literal

GB = 1e9
GIB = 2**30
GBIT = 1e9 / 8
"""Number of bytes in a gigabit, which is the unit of network speeds."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Specification of a chip, per JAX device. On TPU7x, a JAX device is half of a chip."""

    name: str
    """Name of the chip in topology names, such as `v5p` in `v5p:4x4x4`."""
    kind: str
    """Prefix of `jax.Device.device_kind` for this chip. It is also the key in `utilization.PEAK_FLOPS`."""
    platform: Literal["tpu", "gpu"]
    memory: float
    """Size of the device memory in bytes. On TPUs, the compiler reserves a part of it for itself."""
    bandwidth: float
    """Bandwidth of the device memory in bytes per second."""
    links: float
    """Number of bytes per second that the device can send over the fast network (ICI or NVLink), over all its links
    together.
    """
    network: float
    """Number of bytes per second that the device can send over the slow network: between slices (DCN) or nodes
    (InfiniBand).
    """
    devices: int = 1
    """Number of JAX devices per chip."""
    dimensions: int = 1
    """Number of dimensions of the fast network: 2 or 3 if it is a torus, 1 if every device can send to every other one
    at full speed.
    """
    gpus_per_node: int = 0
    """Number of GPUs per node. 0 for TPUs, whose number of chips per slice is part of the topology name."""

    @property
    def networks(self) -> tuple[str, str]:
        """Names of the fast and the slow network."""
        return ("ICI", "DCN") if self.platform == "tpu" else ("NVLink", "InfiniBand")


CHIPS = {
    chip.name: chip
    for chip in (
        # The page of v4 does not give bandwidths. It has six links of 50 GB/s (Jouppi et al. 2023, "TPU v4", table 4).
        # For the data center network, the bandwidth of v5p is assumed.
        Chip("v4", "TPU v4", "tpu", 32 * GIB, 1200 * GB, 300 * GB, 50 * GBIT, dimensions=3),
        # A pod of 256 chips has a network bandwidth of 6.4 Tbit/s.
        Chip("v5e", "TPU v5 lite", "tpu", 16 * GIB, 819 * GB, 200 * GB, 25 * GBIT, dimensions=2),
        Chip("v5p", "TPU v5", "tpu", 95 * GIB, 2765 * GB, 600 * GB, 50 * GBIT, dimensions=3),
        Chip("v6e", "TPU v6 lite", "tpu", 32 * GIB, 1638 * GB, 400 * GB, 100 * GBIT, dimensions=2),
        # Each of the two devices of a chip has half of its memory and cores. They share the links.
        Chip("tpu7x", "TPU7x", "tpu", 96 * GIB, 3690 * GB, 300 * GB, 50 * GBIT, devices=2, dimensions=3),
        # Memory sizes are those that CUDA reports. As in NVIDIA DGX, each GPU has a 400 Gbit/s ConnectX-7 card.
        Chip("h100", "NVIDIA H100", "gpu", 84_978_434_048, 3350 * GB, 450 * GB, 400 * GBIT, gpus_per_node=8),
        Chip("h200", "NVIDIA H200", "gpu", 151_397_597_184, 4800 * GB, 450 * GB, 400 * GBIT, gpus_per_node=8),
        Chip("b200", "NVIDIA B200", "gpu", 191_514_411_008, 8000 * GB, 900 * GB, 400 * GBIT, gpus_per_node=8),
    )
}
"""Maps the name of each supported chip, such as `v5p`, to its specification."""
