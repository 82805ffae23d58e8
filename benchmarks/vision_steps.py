"""Training steps of DETR, SegFormer and VideoMAE here and in PyTorch: images or clips a second, in turns, in one run.

    pip install '.[torch,video,coco]' && python benchmarks/vision_steps.py [ROW ...]

The models have the sizes of the papers (DETR-R50, SegFormer-B0, VideoMAE-S) on smaller pictures, without dropout, with
AdamW and clipping, in float32. PyTorch's side is the class of transformers, eager and through torch.compile, which also
computes the losses and the matching of DETR; it updates the statistics of SegFormer's batch norm, which are fixed here,
and no side freezes parts of the ResNet. Each side has a process of its own, and they take turns.
"""

import argparse
import functools
import sys

from rows import Row, batch_of, experiment_of, our_step, sizes_of
from turns import OURS, Step, alone, compare, conclude, take_turns

GOALS = {"eager": 1.2, "compiled": 1.0}
SIDES = ("encoder", "decoder")
DETR = {"model.image": 256, "data.task.image.size": 256, "data.task.image.shortest": None}
DETR |= {f"model.{part}.dtype": "float32" for part in ("backbone", *SIDES)}
DETR |= {f"model.{side}.{name}": 0.0 for side in SIDES for name in ("dropout", "attention_dropout")}
SEGFORMER = {"model.image": 256, "data.task.image.size": 256, "model.head_dropout": 0.0}
SEGFORMER |= {f"model.stage_{number}.dtype": "float32" for number in range(1, 5)}
VIDEO_MAE = {"model.image": 112, "data.task.clip.size": 112}
VIDEO_MAE |= {"model.transformer.width": 384, "model.transformer.heads": 6, "model.transformer.dtype": "float32"}
VIDEO_MAE |= {"model.decoder.width": 192, "model.decoder.heads": 3, "model.decoder.dtype": "float32"}
ROWS = (
    Row("detr", "detr_r50_coco", 2, "detr", DETR, unit="images"),
    Row("segformer", "segformer_b0_ade20k", 4, "segformer", SEGFORMER, unit="images"),
    Row("video_mae", "video_mae_b_k400", 8, "video_mae", VIDEO_MAE, unit="clips"),
)


def torch_step(row: Row, compiled: bool) -> Step:
    """Returns the training step of the class of transformers on the same batch."""
    import torch
    import torch_models

    torch.manual_seed(0)
    experiment = experiment_of(row)
    model, loss = getattr(torch_models, row.torch)(experiment, torch_models.tensors(batch_of(experiment), "cpu"))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    forward = torch.compile(loss) if compiled else loss

    def step():
        forward(model).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="measure only these rows")
    parser.add_argument("--turns", type=int, default=7, help="timed steps of each side")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    options = parser.parse_args()
    results = []
    for row in (row for row in ROWS if not options.rows or row.name in options.rows):
        sides = {OURS: functools.partial(our_step, row), "eager": functools.partial(torch_step, row, compiled=False)}
        if not options.no_compile:
            sides["compiled"] = functools.partial(torch_step, row, compiled=True)
        sizes = alone(OURS, sizes_of, row)
        print(f"{row.name}, in {row.unit}:", flush=True)
        seconds = take_turns(sides, options.turns, warm=1)
        results += compare(f"vision_steps/{row.name}", seconds, GOALS, sizes["units"], sizes["flops"], row.unit)
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
