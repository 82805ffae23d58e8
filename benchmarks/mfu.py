"""Training steps on one accelerator, here and in PyTorch: tokens or images per second, and model FLOPs utilisation.

    pip install '.[cuda,torch]' && python benchmarks/mfu.py [ROW ...] [--minutes 7] [--toy] [--no_torch]

The rows, most important first, are GPT-2 124M, LLaMA 1B, BERT-large, ViT-B/16, T5-base and BERT-base, in bfloat16 with
float32 parameters and AdamW. PyTorch's side is the same model in transformers under autocast to bfloat16, with
scaled-dot-product attention, torch.compile and the fused AdamW. Attention dropout is 0 on both sides, as our
kernels have none; BERT keeps dropout of 0.1 elsewhere. Each side has a process of its own on the same device, and they
take turns. A line is printed as soon as a row is measured, so that a run that is cut off has its first rows.

FLOPs are those of the matrix products that the model needs (`Model.flops`, three times the forward pass): products that
are computed again by rematerialisation do not count, and a causal token attends to half of the others. Utilisation is
relative to the device's stated peak and to the speed of a bfloat16 product of 8,192 x 8,192 matrices on it. Before a
row is measured, the line `plan` has what `jaxformer plan` predicts on one such GPU, from the program compiled for it.
`--toy` measures tiny models, to check the script on a CPU.
"""

import argparse
import dataclasses
import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from turns import OURS, Step, alone, take_turns, training_step

CONFIGS = Path(__file__).parents[1] / "configs"
MEMORY = "0.55"
"""Share of the device's memory that JAX takes; the rest is for PyTorch's process."""
PEER = "pytorch"


@dataclasses.dataclass(frozen=True)
class Row:
    """A model, the size of its batch and what is expected of it."""

    name: str
    config: str
    """Name of the config in configs/."""
    batch: int
    """Batch rows per step."""
    torch: str
    """Name of the function in `torch_models.py` that makes the PyTorch model."""
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the config that differ, by dotted path."""
    unit: str = "tokens"
    utilisation: float = 0.0
    """Goal for the share of the device's stated peak; 0: none."""
    speed: float = 0.0
    """Goal for tokens or images per second on an H100; 0: none."""


def _bert(name: str, batch: int, length: int, predictions: int, **goals: float) -> Row:
    overrides = {"data.task.length": length, "data.task.predictions": predictions, "model.transformer.remat": "none"}
    overrides |= {"model.transformer.attention_dropout": 0.0}
    return Row(f"{name}, {length}", name.replace("-", "_"), batch, "bert", overrides, **goals)


PLAIN = {"model.transformer.remat": "none"}
LLAMA_1B = {
    "model.transformer.width": 2048,
    "model.transformer.depth": 22,
    "model.transformer.heads": 32,
    "model.transformer.attention.kv_heads": 4,
    "model.transformer.mlp.width": 5632,
    "model.transformer.remat": "dots",
}
"""The sizes of TinyLlama 1.1B (Zhang et al. 2024)."""
T5 = {"model.encoder.remat": "none", "model.decoder.remat": "none", "model.vocab": 32_128, "data.pack": False}
T5 |= {f"model.{side}.{name}": 0.0 for side in ("encoder", "decoder") for name in ("dropout", "attention_dropout")}
ROWS = (
    Row("gpt2-124m, 1024", "gpt2_small", 32, "gpt2", PLAIN, utilisation=0.55, speed=600_000),
    Row("llama-1b, 2048", "llama_7b", 8, "llama", LLAMA_1B, utilisation=0.55),
    _bert("bert-large", 256, 128, 20, utilisation=0.55),
    Row("vit-b16, 224", "vit_b16_imagenet", 256, "vit", PLAIN, unit="images", speed=3_000),
    _bert("bert-large", 64, 512, 76),
    Row("t5-base, 512", "t5_base", 64, "t5", T5),
    _bert("bert-base", 512, 128, 20),
    _bert("bert-base", 128, 512, 76),
)
TINY = {
    "width": 64,
    "depth": 2,
    "heads": 4,
}


def experiment_of(row: Row, toy: bool):
    """Returns the row's experiment; its data is not read."""
    import jaxformer as jf

    settings = {"data.batch": row.batch, "mesh": jf.Mesh(), "steps": 1_000_000} | row.overrides
    settings["optimizer"] = jf.optimizers.AdamW(weight_decay=0.01, clip=1.0)
    experiment = jf.load(CONFIGS / f"{row.config}.py", settings)
    if not toy:
        return experiment
    stacks = ("encoder", "decoder") if row.torch == "t5" else ("transformer",)
    small = {f"model.{stack}.{name}": size for stack in stacks for name, size in TINY.items()}
    small |= {f"model.{stack}.mlp.width": 128 for stack in stacks} | {"data.batch": 4}
    small |= {"model.transformer.attention.kv_heads": 2} if row.torch == "llama" else {}
    small |= {} if row.torch == "vit" else {"data.task.input_length" if row.torch == "t5" else "data.task.length": 64}
    small |= {"data.task.predictions": 8} if row.torch == "bert" else {}
    small |= {"model.image": 32} if row.torch == "vit" else {"model.vocab": 512}
    small |= {"data.task.image.size": 32} if row.torch == "vit" else {}
    return jf.load(CONFIGS / f"{row.config}.py", settings | small)


def batch_of(experiment) -> dict[str, np.ndarray]:
    """Returns a batch of random rows, each one whole example."""
    from jaxformer.parallel.sharding import make_mesh
    from jaxformer.training.state import abstract_batch

    shapes = abstract_batch(experiment, make_mesh(experiment.mesh))
    rng, vocab = np.random.default_rng(0), getattr(experiment.model, "vocab", None)

    def values(name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        if name in ("tokens", "inputs") or (name == "targets" and np.issubdtype(dtype, np.integer)):
            return rng.integers(5, vocab, shape)
        if name == "images":
            return rng.integers(0, 256, shape)
        if name == "labels":
            return rng.integers(0, len(experiment.model.labels), shape)
        if name.endswith("position_ids"):
            return np.tile(np.arange(shape[1]), (shape[0], 1))
        if name == "masked_positions":
            return np.sort(
                rng.permuted(np.tile(np.arange(experiment.data.task.length), (shape[0], 1)), axis=1)[:, : shape[1]]
            )
        if name in ("cls_positions", "token_types"):
            return np.zeros(shape)
        if name == "next_sentence":
            return rng.integers(0, 2, shape)
        if name.endswith("weights") or name.endswith("segments"):
            return np.ones(shape)
        raise ValueError(f"no values for the batch array {name}")

    batch = {name: values(name, leaf.shape, leaf.dtype).astype(leaf.dtype) for name, leaf in shapes.items()}
    if "labels" in batch:  # One label per image.
        batch["weights"] = np.tile(np.array([1, 0], np.float32), (len(batch["labels"]), 1))
    return batch


def our_step(row: Row, toy: bool, steps: int) -> Step:
    """Returns our training step, run `steps` times per call."""
    experiment = experiment_of(row, toy)
    return training_step(experiment, batch_of(experiment), steps)


def torch_step(row: Row, toy: bool, steps: int) -> Step:
    """Returns the step of transformers' model on the same batch, run `steps` times per call."""
    import torch
    import torch_models

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(0)
    experiment = experiment_of(row, toy)
    model, loss = getattr(torch_models, row.torch)(experiment, torch_models.tensors(batch_of(experiment), device))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)

    @torch.compile(backend="aot_eager" if toy else "inductor")
    def forward():
        with torch.autocast(device, torch.bfloat16):
            return loss(model)

    def step():
        for _ in range(steps):
            forward().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    return step


def sizes_of(row: Row, toy: bool) -> dict[str, Any]:
    """Returns what is counted per step: `units` (tokens or images) and `flops`."""
    experiment = experiment_of(row, toy)
    shapes = experiment.data.task.row
    rows = experiment.data.batch
    sizes = {"b": rows}
    if "tokens" in shapes:
        sizes["t"] = shapes["tokens"].capacity
    if "inputs" in shapes:
        sizes["s"] = shapes["inputs"].capacity
    if "masked_positions" in shapes:
        sizes["m"] = shapes["masked_positions"].capacity
    units = rows if row.unit == "images" else rows * sum(sizes.get(axis, 0) for axis in "ts")
    return {"units": units, "flops": 3.0 * experiment.model.flops(sizes)}


def device_of() -> dict[str, Any]:
    """Returns the device's name, its stated peak and the measured speed of a large bfloat16 product, in FLOP/s."""
    import jax
    import jax.numpy as jnp

    from jaxformer.training.utilization import peak_flops

    device = jax.devices()[0]
    size, times = (8192, 30) if device.platform != "cpu" else (1024, 5)
    x, y = (jax.random.normal(jax.random.key(seed), (size, size), jnp.bfloat16) for seed in (0, 1))
    product = jax.jit(lambda x, y: x @ y)
    product(x, y).block_until_ready()
    start = time.perf_counter()
    for _ in range(times):
        result = product(x, y)
    result.block_until_ready()
    measured = 2 * size**3 * times / (time.perf_counter() - start)
    return {"device": device.device_kind, "peak": peak_flops(device), "product": measured}


def planned(row: Row, toy: bool, kind: str) -> dict[str, float]:
    """Returns what `jaxformer plan` predicts for our step on one GPU: seconds a step and bytes of its memory.

    Empty if plans do not support the GPU. Call it in a process of its own, which then uses no GPU.

    Args:
      row: the row.
      toy: whether the model is tiny.
      kind: name of the GPU, as JAX has it.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    import jaxformer as jf
    from jaxformer.planning.chips import CHIPS

    chip = next((chip for chip in CHIPS.values() if chip.platform == "gpu" and kind.startswith(chip.kind)), None)
    if chip is None:
        return {}
    plan = jf.plan(experiment_of(row, toy), f"{chip.name}:1")
    if plan.roofline is None:
        return {}
    return {"shortest": plan.roofline.shortest, "longest": plan.roofline.longest, "peak": plan.memory.peak}


def compare_with_plan(row: Row, options: argparse.Namespace, kind: str, sizes: dict[str, Any]) -> dict[str, float]:
    """Prints what `jaxformer plan` predicts for a row, and returns it. Empty if it predicts nothing."""
    try:
        plan = alone(OURS, planned, row, options.toy, kind)
    except Exception as error:  # The measurement is worth having without it.
        print(f"{row.name:18} plan       failed: {error}", flush=True)
        return {}
    if plan:
        low, high = plan["shortest"], plan["longest"]
        speeds = f"{sizes['units'] / high:,.0f}–{sizes['units'] / low:,.0f} {row.unit}/s"
        times = f"{low * 1e3:.1f}–{high * 1e3:.1f} ms a step"
        print(f"{row.name:18} plan       {speeds}   {times}   peak {plan['peak'] / 2**30:.1f} GiB", flush=True)
    return plan


def measure(row: Row, options: argparse.Namespace, device: dict[str, Any]) -> dict[str, Any]:
    """Measures a row and prints a line about it; a side that fails is left out."""
    sizes = alone(OURS, sizes_of, row, options.toy)
    unplanned = options.no_plan or not device["peak"]  # No plan knows a device without a stated peak.
    plan = {} if unplanned else compare_with_plan(row, options, device["device"], sizes)
    steps = 1 if options.toy else 5
    sides = {OURS: functools.partial(our_step, row, options.toy, steps)}
    if not options.no_torch:
        sides[PEER] = functools.partial(torch_step, row, options.toy, steps)
    try:
        seconds = take_turns(sides, turns=3, warm=1)
    except EOFError:  # Its process has printed why.
        seconds = take_turns({OURS: sides[OURS]}, turns=3, warm=1)
    seconds = {name: time_ / steps for name, time_ in seconds.items()}
    result: dict[str, Any] = {"benchmark": f"mfu/{row.name}", "device": device["device"]}
    if plan:  # A step takes at least the shortest time of the plan; their ratio says how good the prediction is.
        result["plan"] = plan | {"of_longest": round(seconds[OURS] / plan["longest"], 2)}
    for name, time_ in seconds.items():
        speed, rate = sizes["units"] / time_, sizes["flops"] / time_
        peak = f"   {rate / device['peak']:6.1%} of the stated peak" if device["peak"] else ""
        print(
            f"{row.name:18} {name:10} {speed:12,.0f} {row.unit}/s   {time_ * 1e3:8.1f} ms a step{peak}   "
            f"{rate / device['product']:6.1%} of a large product",
            flush=True,
        )
    rate = sizes["flops"] / seconds[OURS]
    result["speed"] = round(sizes["units"] / seconds[OURS])
    result["utilisation"] = round(rate / (device["peak"] or device["product"]), 3)
    result["ratio"] = round(seconds[PEER] / seconds[OURS], 2) if PEER in seconds else None
    result["goal"] = {"ratio": 1.0, "utilisation": row.utilisation, "speed": row.speed}
    result["met"] = (
        (result["ratio"] or 0) >= 1 and result["utilisation"] >= row.utilisation and result["speed"] >= row.speed
    )
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="measure only the rows whose names begin with these")
    parser.add_argument("--minutes", type=float, default=7.0, help="start no further row after this time")
    parser.add_argument("--toy", action="store_true", help="tiny models, to check the script")
    parser.add_argument("--no_torch", action="store_true", help="leave PyTorch out")
    parser.add_argument("--no_plan", action="store_true", help="leave out what `jaxformer plan` predicts")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", MEMORY)
    began, results = time.monotonic(), []
    device = alone(OURS, device_of)
    stated = f"{device['peak'] / 1e12:,.0f} TFLOP/s stated, " if device["peak"] else ""
    print(
        f"{device['device']}: {stated}{device['product'] / 1e12:,.1f} TFLOP/s in a large bfloat16 product", flush=True
    )
    for row in ROWS:
        if options.rows and not row.name.startswith(tuple(options.rows)):
            continue
        if time.monotonic() - began > 60 * options.minutes:
            print(f"{row.name:18} not measured: {options.minutes:g} minutes are over", flush=True)
            continue
        try:
            results.append(measure(row, options, device))
        except Exception as error:  # The other rows are worth having; the processes have printed what failed.
            results.append({"benchmark": f"mfu/{row.name}", "device": device["device"], "met": False})
            print(f"{row.name:18} failed: {error!r}", flush=True)
        print(json.dumps(results[-1]), flush=True)
    print(json.dumps(results))
    return 0 if results and all(result["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
