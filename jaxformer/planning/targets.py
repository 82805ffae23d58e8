"""Descriptions of GPU types, which XLA needs to compile for a GPU that is not attached.

A description is a GpuTargetConfigProto in text format: the limits that CUDA reports for the GPU, and the versions of
CUDA and cuDNN to compile for. The values are from h100_sxm.txtpb, h200.txtpb and b200.txtpb in XLA's folder
xla/backends/gpu/target_config/specs (Apache-2.0), without the fields that the compiler does not need.
"""

TEMPLATE = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth}
  l2_cache_size: {cache}
  clock_rate_ghz: {clock}
  device_memory_size: {memory}
  shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""
HOPPER = {"cores": 132, "cache": 52_428_800, "clock": 1.98, "major": 9}
CARDS = {
    "h100": {
        **HOPPER,
        "bandwidth": 3_352_320_000_000,
        "memory": 84_978_434_048,
        "name": "NVIDIA H100 80GB HBM3",
    },
    "h200": {
        **HOPPER,
        "bandwidth": 4_800_000_000_000,
        "memory": 151_397_597_184,
        "name": "NVIDIA H200",
    },
    "b200": {
        "cores": 148,
        "bandwidth": 7_672_320_000_000,
        "cache": 132_644_864,
        "clock": 1.965,
        "memory": 191_514_411_008,
        "major": 10,
        "name": "NVIDIA B200",
    },
}
"""Maps GPU names to dicts of the values that are inserted into `TEMPLATE`."""


def target_config(chip: str) -> str:
    """Returns the description of a GPU type that the compiler needs, as a GpuTargetConfigProto in text format. `chip`
    is a key of `CARDS`.
    """
    return TEMPLATE.format(**CARDS[chip]).lstrip()
