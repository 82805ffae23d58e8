"""Images a second of the augmentation pipeline on one core, beside what a training step consumes on all.

    python benchmarks/image_pipeline.py

The step is that of benchmarks/vit_step.py: ViT-Ti/16 at 96 × 96. The pipeline reads JPEG files of 160 × 120 pixels
from folders of classes and does all that it can: a random part, mirrored, two operations of RandAugment, and mixup or
cutmix, for which each image takes a second one. In the first pass every file is decoded. The slowest pass must be three
times faster than the step, which is timed in the same run.
"""

import argparse
import json
import os
import sys
import tempfile
import time

import numpy as np
from PIL import Image
from turns import use_one_core

from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data, train_batches
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.data.transforms.image import Augmentation

GOAL, FILES, ROWS, SIZE, LABELS = 3, 640, 32, 96, ("one", "other")


def write_images(folder: str) -> None:
    """Smooth pictures, as photographs are, half of them in either class."""
    rng = np.random.default_rng(0)
    for number in range(FILES):
        home = os.path.join(folder, LABELS[number % 2])
        os.makedirs(home, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize((160, 120), Image.BICUBIC)
        picture.save(os.path.join(home, f"{number}.jpg"), quality=90)


def pipeline_rates(folder: str, passes: int) -> list[float]:
    """Images a second of each pass, prefetching included."""
    task = LabelledImages(
        ImageField(SIZE, augmentation=Augmentation(operations=2)), labels=LABELS, mixup=0.8, cutmix=1.0
    )
    found = []
    start = time.perf_counter()
    with train_batches(Data(ImageFolders(folder), task, ROWS), None, seed=0, rows=range(ROWS)) as batches:
        for _ in range(passes):
            for _ in range(FILES // ROWS):
                next(batches)
            stop = time.perf_counter()
            found.append(FILES / (stop - start))
            start = stop
    return found


def step_rate(seconds: float) -> float:
    """Images a second of the training step, its data at hand."""
    from vit_step import jaxformer_step

    step = jaxformer_step()
    step()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        step()
        count += 1
    return count * ROWS / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passes", type=int, default=4, help="passes over the files")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to time the training step")
    options = parser.parse_args()
    step = step_rate(options.seconds)
    use_one_core()
    with tempfile.TemporaryDirectory() as folder:
        write_images(folder)
        first, *later = pipeline_rates(folder, options.passes)
    print(f"step        {step:8,.0f} images/s")
    print(f"first pass  {first:8,.0f} images/s")
    for rate in later:
        print(f"later pass  {rate:8,.0f} images/s")
    ratio = min(first, *later) / step
    print(json.dumps({"benchmark": "image_pipeline", "ratio": round(ratio, 2), "goal": GOAL, "met": ratio >= GOAL}))
    return 0 if ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
