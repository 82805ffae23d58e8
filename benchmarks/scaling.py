"""Bytes that a device sends in a training step, as the number of TPU chips grows from 8 to 4,096.

    pip install '.[plan]' && python benchmarks/scaling.py [SPLIT ...] [--chips 8 64 512 4096]

Nothing runs: the step of a GPT with two blocks is compiled for slices of TPU v5p, and the collectives of the compiled
program are counted, as `jaxformer plan` counts them. A split is a way to divide the step among the chips:

- `data`: one row per chip, and each chip has all parameters. The bytes are those of an all-reduce of all gradients.
- `fsdp`: one row per chip, and up to 64 chips share the parameters. Their bytes do not depend on the number of chips.
- `tensor`: a batch of 4,096 rows; four chips share a row and the parameters. The bytes of activations fall with the
  number of rows of a chip, and those of gradients stay.
- `sequence`: four chips share a row, and there is one row for every four chips. All bytes stay.
- `slices`: as `fsdp`, but half of the chips are in another slice. The bytes between slices are counted separately.

The formulas of `jaxformer plan --search` say how the bytes depend on the number of chips. The goal is that they grow at
most 10% more from the smallest number of chips to any larger one than the formulas say.
"""

import argparse
import dataclasses
import json
import os
import sys
import time

os.environ["JAX_PLATFORMS"] = "cpu"

SLICES = {4: "v5p:2x2x1", 8: "v5p:2x2x2", 32: "v5p:2x4x4", 64: "v5p:4x4x4"}
SLICES |= {256: "v5p:4x8x8", 512: "v5p:8x8x8", 2048: "v5p:8x16x16", 4096: "v5p:16x16x16"}
"""Maps numbers of chips to names of TPU slices."""
CHIPS = (8, 64, 512, 4096)
MODEL = {"width": 1024, "depth": 2, "heads": 8, "remat": "full", "mlp.width": 4096}
LENGTH, VOCAB = 512, 8192
SHARED = 4
"""Number of chips that share a row (`tensor` and `sequence`)."""
FSDP = 64
"""Maximum number of chips that share the parameters."""
ROWS = 4096
"""Number of rows of the batch that is the same for all numbers of chips (`tensor`)."""
GROWTH = 1.1
"""Maximum growth of the bytes, relative to that of the formulas."""


@dataclasses.dataclass(frozen=True)
class Sent:
    """Number of bytes that a device sends in a step: inside its slice (`fast`) and to other slices (`slow`)."""

    fast: float
    slow: float


def mesh_of(split: str, chips: int):
    """Returns the mesh of a split for a number of chips."""
    import jaxformer as jf

    if split == "data":
        return jf.Mesh(data=chips)
    if split == "tensor":
        return jf.Mesh(data=chips // SHARED, tensor=SHARED)
    if split == "sequence":
        return jf.Mesh(data=chips // SHARED, sequence=SHARED)
    slices = 2 if split == "slices" else 1
    fsdp = min(chips // slices // 2, FSDP)  # The compiler uses all-reduces where fsdp has all devices (performance.md).
    return jf.Mesh(slices=slices, data=chips // slices // fsdp, fsdp=fsdp)


def experiment_of(split: str, chips: int):
    """Returns the experiment of a split for a number of chips."""
    import jaxformer as jf

    rows = {"tensor": ROWS, "sequence": chips // SHARED}.get(split, chips)
    settings = {f"model.transformer.{name}": value for name, value in MODEL.items()}
    settings |= {"model.vocab": VOCAB, "model.max_length": LENGTH, "data.task.length": LENGTH, "data.batch": rows}
    return jf.load("gpt2_small", settings | {"mesh": mesh_of(split, chips), "optimizer.accumulate": 1})


def measured(split: str, chips: int) -> tuple[Sent, str]:
    """Compiles the step. Returns the bytes that a device sends, and a text with those of each kind of collective."""
    import jaxformer as jf
    from jaxformer.planning import traffic

    plan = jf.plan(experiment_of(split, chips), topology_of(split, chips))
    kinds = traffic.by_kind(plan.collectives, lambda one: one.fast + one.slow)
    shown = ", ".join(f"{kind} {size / 1e6:,.1f}" for kind, size in kinds.items())
    return Sent(sum(one.fast for one in plan.collectives), sum(one.slow for one in plan.collectives)), shown


def topology_of(split: str, chips: int) -> str:
    return f"2x{SLICES[chips // 2]}" if split == "slices" else SLICES[chips]


def expected(split: str, chips: int) -> Sent:
    """Returns the bytes that a device sends according to the formulas."""
    from jaxformer.planning import topologies
    from jaxformer.planning.candidates import Candidate
    from jaxformer.planning.formulas import Formulas

    experiment, topology = experiment_of(split, chips), topologies.parse(topology_of(split, chips))
    formulas = Formulas(experiment, topology, model_flops=0.0)
    return Sent(*formulas.bytes_sent(Candidate(experiment.mesh, MODEL["remat"], 1)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    splits = ["data", "fsdp", "tensor", "sequence", "slices"]
    parser.add_argument("splits", nargs="*", default=splits, help="how to divide the step among the chips")
    parser.add_argument("--chips", type=int, nargs="+", default=list(CHIPS), help="numbers of chips, ascending")
    options = parser.parse_args()
    results = []
    for split in options.splits:
        first: dict[str, float] = {}
        for chips in options.chips:
            began, (sent, shown), theory = time.monotonic(), measured(split, chips), expected(split, chips)
            inside = f"{sent.fast / 1e6:8,.1f} MB inside a slice (formulas {theory.fast / 1e6:,.1f})"
            between = f", {sent.slow / 1e6:,.2f} between slices ({theory.slow / 1e6:,.2f})" if theory.slow else ""
            seconds = time.monotonic() - began
            print(f"{split:8} {chips:5,} chips {inside}{between}: {shown}; {seconds:.0f} s", flush=True)
            for network in ("fast", "slow"):
                if not getattr(theory, network):
                    continue
                growth = getattr(sent, network) / getattr(theory, network)
                growth /= first.setdefault(network, growth) or 1.0
                name = f"scaling/{split}/{chips}" + ("/between slices" if network == "slow" else "")
                result = {"benchmark": name, "bytes": round(getattr(sent, network)), "ratio": round(growth, 3)}
                results.append(result | {"goal": GROWTH, "met": growth <= GROWTH})
    print(json.dumps(results))
    return 0 if all(result["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
