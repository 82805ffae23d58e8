"""Compares the predictions of a run for video clips with those of the transformers library, which loads the exported or
imported folder.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
import transformers
from PIL import Image

from jaxformer.config import override
from jaxformer.interop.parity.compare import reading
from jaxformer.interop.parity.lines import Line
from jaxformer.interop.parity.sides import Sides, line

SIZES = ((53, 37), (24, 64))
"""Heights and widths in pixels of the generated test clips. Neither is square."""


def compare_labels(sides: Sides) -> Iterator[Line]:
    """Compares the label probabilities that the run and the transformers library predict for generated test clips.
    Yields one entry of the parity certificate.
    """
    model = sides.run.model
    fields = {"sampling": "uniform", "clips": 1, "crops": 1}
    experiment = override(sides.run.experiment, {f"data.task.clip.{name}": value for name, value in fields.items()})
    sides = dataclasses.replace(sides, run=dataclasses.replace(sides.run, experiment=experiment))
    network = sides.network(transformers.AutoModelForVideoClassification)
    with reading("AutoImageProcessor"):
        process = transformers.AutoImageProcessor.from_pretrained(sides.folder, local_files_only=True)
    ours, theirs = [], []
    for clip in generated(model.frames, model.channels):
        (answer,) = sides.predict([clip])
        ours.append([dict(answer.labels)[name] for name in model.labels])
        pixels = process(list(clip), return_tensors="pt", input_data_format="channels_last")
        with torch.no_grad():
            theirs.append(network(**pixels).logits[0].softmax(-1).numpy())
    yield line("labels", f"{len(ours)} clips", ours, theirs)


def generated(frames: int, channels: int) -> list[np.ndarray]:
    """Generates test clips, uint8 [frames, height, width, channels], one per size in `SIZES`. Each shows a picture that
    moves by one pixel per frame.
    """
    rng, found = np.random.default_rng(0), []
    for height, width in SIZES:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5) if channels == 1 else (6, 5, 3), np.uint8))
        picture = np.asarray(coarse.resize((width + frames, height), Image.Resampling.BILINEAR))
        clip = np.stack([picture[:, number : number + width] for number in range(frames)])
        found.append(clip.reshape(*clip.shape[:3], channels))
    return found
