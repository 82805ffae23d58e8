"""Training steps on one accelerator, here and in PyTorch: tokens or images per second, and model FLOPs utilisation.

    pip install '.[cuda,diffusers]' && python benchmarks/mfu.py [ROW ...] [--minutes 7] [--toy] [--no_torch]

The rows, most important first, are GPT-2 124M, LLaMA 1B, BERT-large, ViT-B/16, T5-base, BERT-base, Whisper small,
VideoMAE-B, SegFormer-B0, DETR-R50, DiT-B and DALL·E, in bfloat16 with float32 parameters and AdamW. PyTorch's side is
the same model in transformers, or in diffusers for DiT (DALL·E has none), under autocast to bfloat16, with
scaled-dot-product attention, torch.compile and the fused AdamW. Attention dropout is 0 on both sides, as our kernels
have none; BERT keeps dropout of 0.1 elsewhere. Each side has a process of its own on the same device, and they take
turns. A line is printed as soon as a row is measured, so that a run that is cut off has its first rows.

FLOPs are those of the matrix products that the model needs (`Model.flops`, three times the forward pass): products that
are computed again by rematerialisation do not count, and a causal token attends to half of the others. Utilisation is
relative to the device's stated peak and to the speed of a bfloat16 product of 8,192 x 8,192 matrices on it. Before a
row is measured, the line `plan` has what `jaxformer plan` predicts on one such GPU, from the program compiled for it.
`--toy` measures tiny models, to check the script on a CPU.
"""

import argparse
import functools
import json
import os
import sys
import time
from typing import Any

from rows import (
    NO_DROPOUT,
    SIDES,
    Row,
    detr,
    experiment_of,
    of_stacks,
    our_step,
    segformer,
    sizes_of,
    small,
    torch_side,
)
from turns import OURS, Step, alone, take_turns

MEMORY = "0.55"
"""Share of the device's memory that JAX takes; the rest is for PyTorch's process."""
PEER = "pytorch"


def _bert(name: str, batch: int, length: int, predictions: int, **goals: float) -> Row:
    overrides = {"data.task.length": length, "data.task.predictions": predictions, "model.transformer.remat": "none"}
    overrides |= {"model.transformer.attention_dropout": 0.0}
    toy = small("transformer", **{"model.vocab": 512, "data.task.length": 64, "data.task.predictions": 8})
    return Row(f"{name}, {length}", name.replace("-", "_"), batch, "bert", overrides, toy, **goals)


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
T5 = {"model.vocab": 32_128, "data.pack": False} | of_stacks(SIDES, remat="none", **NO_DROPOUT)
WHISPER = of_stacks(SIDES, remat="none")
TEXT = {"model.vocab": 512, "data.task.length": 64}
ROWS = (
    Row("gpt2-124m, 1024", "gpt2_small", 32, "gpt2", PLAIN, small("transformer", **TEXT), "tokens", 0.55, 600_000),
    Row(
        *("llama-1b, 2048", "llama_7b", 8, "llama", LLAMA_1B),
        small("transformer", **TEXT, **{"model.transformer.attention.kv_heads": 2}),
        utilisation=0.55,
    ),
    _bert("bert-large", 256, 128, 20, utilisation=0.55),
    Row(
        *("vit-b16, 224", "vit_b16_imagenet", 256, "vit", PLAIN),
        small("transformer", **{"model.image": 32, "data.task.image.size": 32}),
        unit="images",
        speed=3_000,
    ),
    _bert("bert-large", 64, 512, 76),
    Row(
        *("t5-base, 512", "t5_base", 64, "t5", T5),
        small(*SIDES, **{"model.vocab": 512, "data.task.input_length": 64}),
    ),
    _bert("bert-base", 512, 128, 20),
    _bert("bert-base", 128, 512, 76),
    Row(
        *("whisper-small", "whisper_small", 32, "whisper", WHISPER),
        small(*SIDES, **{"model.vocab": 512}),
        unit="windows",
    ),
    Row(
        *("video-mae-b, 16 x 224", "video_mae_b_k400", 32, "video_mae"),
        toy=small(*("transformer", "decoder"), **{"model.image": 32, "data.task.clip.size": 32}),
        unit="clips",
    ),
    Row(
        *("segformer-b0, 512", "segformer_b0_ade20k", 16, "segformer", segformer(512, "bfloat16")),
        {"data.batch": 2, "model.image": 64, "data.task.image.size": 64},
        unit="images",
    ),
    Row(
        *("detr-r50, 800", "detr_r50_coco", 8, "detr", detr(800, "bfloat16")),
        small(*SIDES, **{"data.batch": 2, "model.image": 64, "data.task.image.size": 64}),
        unit="images",
    ),
    Row(
        *("dit-b, 256", "dit_b_imagenet", 64, "dit"),
        toy=small("transformer", **{"model.image": 32, "data.task.image.size": 32}),
        unit="images",
    ),
    Row(
        *("dalle-1.2b, 256", "dalle_cc3m", 8, None, of_stacks(["transformer"], dropout=0.0)),
        small(
            *("transformer", "vae.encoder", "vae.decoder"),
            **{"model.vae.image": 32, "data.task.image.size": 32, "model.vocab": 512, "data.task.text.length": 16},
        ),
        unit="images",
    ),
)


def torch_step(row: Row, toy: bool, steps: int) -> Step:
    """Returns the step of transformers' model on the same batch, run `steps` times per call."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    model, loss, update = torch_side(row, toy, device, fused=True)

    @torch.compile(backend="aot_eager" if toy else "inductor")
    def forward():
        with torch.autocast(device, torch.bfloat16):
            return loss(model)

    def step():
        for _ in range(steps):
            update(forward())
        if device == "cuda":
            torch.cuda.synchronize()

    return step


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
    if row.torch is not None and not options.no_torch:
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
        (row.torch is None or (result["ratio"] or 0) >= 1)
        and result["utilisation"] >= row.utilisation
        and result["speed"] >= row.speed
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
