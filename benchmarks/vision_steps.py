"""Training steps of DETR, SegFormer, VideoMAE and DiT here and in PyTorch: images or clips a second, in turns.

    pip install '.[torch,video,coco,diffusers]' && python benchmarks/vision_steps.py [ROW ...]

The models have the sizes of the papers (DETR-R50, SegFormer-B0, VideoMAE-S, and DiT-S with patches of 16 × 16 pixels),
on smaller pictures except for DiT, without dropout, with AdamW and clipping, in float32. PyTorch's side is the class of
transformers, or of diffusers for DiT, eager and through torch.compile, which also computes the losses and the matching
of DETR; it updates the statistics of SegFormer's batch norm, which are fixed here, and no side freezes parts of the
ResNet. Each side has a process of its own, and they take turns.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

from rows import Row, detr, of_stacks, our_step, segformer, sizes_of, torch_side
from turns import OURS, PRODUCTS, Step, alone, compare, conclude, products_step, take_turns

GOALS = {"eager": 1.2, "compiled": 1.0}
VIDEO_MAE = {"model.image": 112, "data.task.clip.size": 112}
VIDEO_MAE |= of_stacks(["transformer"], width=384, heads=6, dtype="float32")
VIDEO_MAE |= of_stacks(["decoder"], width=192, heads=3, dtype="float32")
DIT = of_stacks(["transformer"], width=384, heads=6, dtype="float32")
ROWS = (
    Row("detr", "detr_r50_coco", 2, "detr", detr(256, "float32"), unit="images"),
    Row("segformer", "segformer_b0_ade20k", 4, "segformer", segformer(256, "float32"), unit="images"),
    Row("video_mae", "video_mae_b_k400", 8, "video_mae", VIDEO_MAE, unit="clips"),
    Row("dit", "dit_b_imagenet", 4, "dit", DIT, unit="images"),
)


def torch_step(row: Row, compiled: bool) -> Step:
    """Returns the training step of the class of transformers on the same batch."""
    import torch

    model, loss, update = torch_side(row, False, "cpu", fused=False)
    forward = torch.compile(loss) if compiled else loss
    return lambda: update(forward(model))


def measure(rows: Sequence[Row], description: str) -> int:
    """The program of a benchmark of steps here and in PyTorch; its exit status. `description` is that of its help."""
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="measure only these rows")
    parser.add_argument("--turns", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    results = []
    for row in (row for row in rows if not options.rows or row.name in options.rows):
        sides = {OURS: functools.partial(our_step, row), "eager": functools.partial(torch_step, row, compiled=False)}
        if not options.no_compile:
            sides["compiled"] = functools.partial(torch_step, row, compiled=True)
        sizes = alone(OURS, sizes_of, row)
        print(f"{row.name}, in {row.unit}:", flush=True)
        sides[PRODUCTS] = functools.partial(products_step, sizes["flops"])
        seconds = take_turns(sides, options.turns, warm=1)
        results += compare(f"{name}/{row.name}", seconds, GOALS, sizes["units"], row.unit)
    return conclude(results)


if __name__ == "__main__":
    sys.exit(measure(ROWS, __doc__))
