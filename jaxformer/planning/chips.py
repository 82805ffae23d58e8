"""The chips that can be planned for, with the figures that their makers publish.

Google's figures are from the pages v4, v5e, v5p, v6e and tpu7x of https://docs.cloud.google.com/tpu/docs, NVIDIA's from
the data sheets h100, h200 and dgx-b200 of https://www.nvidia.com/en-us/data-center. Where a maker publishes the sum of
both directions of a network, this table has half of it: the bytes that a device sends.
"""

import dataclasses
from typing import Literal

GB = 1e9
GIB = 2**30
GBIT = 1e9 / 8
"""Bytes in a gigabit, the unit of network cards."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device as JAX counts them, which is half a chip of TPU7x and of TPU v3 and older."""

    name: str
    """The first part of a topology's name."""
    kind: str
    """How JAX's `device_kind` begins: the key of `utilization.PEAK_FLOPS`."""
    platform: Literal["tpu", "gpu"]
    memory: float
    """Bytes of device memory; a TPU's compiler keeps some of them for itself."""
    bandwidth: float
    """Bytes a second between this memory and the chip."""
    links: float
    """Bytes a second that the device sends over the fast network, all its links together: ICI or NVLink."""
    network: float
    """Bytes a second that the device sends over the slow network: between slices (DCN) or nodes (InfiniBand)."""
    devices: int = 1
    """Devices of a chip."""
    dimensions: int = 1
    """Dimensions of the fast network: 2 or 3 of a torus; 1 where every device reaches every other one at full speed."""
    island: int = 0
    """Devices of a node; 0 where a topology's shape says how many a slice has."""

    @property
    def networks(self) -> tuple[str, str]:
        """The names of the fast and of the slow network."""
        return ("ICI", "DCN") if self.platform == "tpu" else ("NVLink", "InfiniBand")


CHIPS = {
    chip.name: chip
    for chip in (
        # The page of v4 states no bandwidth of its links: six of 50 GB/s (Jouppi et al. 2023, "TPU v4", table 4), and
        # none of the data center's network; that of v5p is assumed.
        Chip("v4", "TPU v4", "tpu", 32 * GIB, 1200 * GB, 300 * GB, 50 * GBIT, dimensions=3),
        # 6.4 Tbit/s of network for a pod of 256 chips.
        Chip("v5e", "TPU v5 lite", "tpu", 16 * GIB, 819 * GB, 200 * GB, 25 * GBIT, dimensions=2),
        Chip("v5p", "TPU v5", "tpu", 95 * GIB, 2765 * GB, 600 * GB, 50 * GBIT, dimensions=3),
        Chip("v6e", "TPU v6 lite", "tpu", 32 * GIB, 1638 * GB, 400 * GB, 100 * GBIT, dimensions=2),
        # Each of a chip's two devices has half of its memory and cores; both share its links.
        Chip("tpu7x", "TPU7x", "tpu", 96 * GIB, 3690 * GB, 300 * GB, 50 * GBIT, devices=2, dimensions=3),
        # Memory as CUDA reports it; one ConnectX-7 of 400 Gbit/s a GPU, as in NVIDIA's DGX.
        Chip("h100", "NVIDIA H100", "gpu", 84_978_434_048, 3350 * GB, 450 * GB, 400 * GBIT, island=8),
        Chip("h200", "NVIDIA H200", "gpu", 151_397_597_184, 4800 * GB, 450 * GB, 400 * GBIT, island=8),
        Chip("b200", "NVIDIA B200", "gpu", 191_514_411_008, 8000 * GB, 900 * GB, 400 * GBIT, island=8),
    )
}
"""All chips by name."""
