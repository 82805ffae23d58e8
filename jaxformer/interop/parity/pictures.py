"""Compares the predictions of a run for image files with those of the transformers library, which loads the exported or
imported folder.
"""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from jaxformer.interop.huggingface.image_runs import image_field_in
from jaxformer.interop.parity.compare import on_cpu, reading, their_tokenizer
from jaxformer.interop.parity.lines import Line
from jaxformer.interop.parity.sides import TEXTS, Sides, line
from jaxformer.runs.run import Run

PICTURES = ((53, 37), (24, 64))
"""Heights and widths in pixels of the generated test images. One image is taller than wide, the other wider than tall.
"""


def compare_labels(sides: Sides) -> Iterator[Line]:
    """Compares the label probabilities that the run and the transformers library predict for test images. Yields one
    entry of the parity certificate.
    """
    names = sides.run.model.labels
    if sides.run.model.channels == 3:
        classify = sides.pipeline("image-classification", top_k=len(names))
    else:  # The pipeline converts all pictures to RGB.
        classify = _without_pipeline(sides)
    with _pictures(sides.run) as paths:
        ours = [[dict(answer.labels)[name] for name in names] for answer in sides.predict(paths)]
        scores = [{choice["label"]: choice["score"] for choice in classify(path)} for path in paths]
    yield line("labels", f"{len(ours)} pictures", ours, [[found[name] for name in names] for found in scores])


def compare_boxes(sides: Sides) -> Iterator[Line]:
    """Compares the probabilities and boxes of all objects that the run and the transformers library predict for test
    images, sorted by probability. Boxes are in fractions of the image size. Yields one entry of the parity certificate,
    or none if the model does not support the comparison.
    """
    if sides.run.model.channels != 3 or "pixel_mask" not in sides.run.model.inputs():
        return  # YOLOS in transformers rounds sizes to multiples of 16.
    network, process = sides.network(transformers.AutoModelForObjectDetection), _processor(sides)
    size = image_field_in(sides.run.experiment.data.task).size
    sides = sides.with_objective(threshold=0.0)
    ours, theirs = [], []
    with _pictures(sides.run) as paths:
        for answer in sides.predict(paths):
            scale = np.array([*answer.picture.size] * 2)
            ours.append([(one.score, *(np.array(one.box) / scale)) for one in answer.objects])
        for path in paths:
            with torch.no_grad(), Image.open(path) as picture:
                square = {"height": size, "width": size}
                arrays = process(picture, return_tensors="pt", pad_size=square)
                output = network(**{name: arrays[name] for name in ("pixel_values", "pixel_mask")})
            theirs.append(_sorted_detections(output))
    yield line("objects", f"{len(ours)} pictures", ours, theirs)


def _sorted_detections(output: Any) -> list[tuple[float, ...]]:
    """Converts the output of a detector of the transformers library to one tuple per predicted object, most likely
    first: probability, left, top, right, bottom (fractions of the image size).
    """
    scores = output.logits[0].softmax(-1)[:, :-1].max(-1).values.numpy()
    boxes = output.pred_boxes[0].numpy()
    corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1).clip(0, 1)
    order = np.argsort(-scores, kind="stable")
    return [(float(scores[place]), *map(float, corners[place])) for place in order]


def _without_pipeline(sides: Sides) -> Callable[[str], list[dict[str, Any]]]:
    """Returns a function that classifies an image file, with the same result as the image classification pipeline of
    the transformers library (a list of dicts with `label` and `score`). Unlike the pipeline, it does not convert images
    to RGB.
    """
    network, process = sides.network(transformers.AutoModelForImageClassification), _processor(sides)

    def classify(path: str) -> list[dict[str, Any]]:
        with torch.no_grad(), Image.open(path) as picture:
            shares = network(**process(picture, return_tensors="pt")).logits[0].softmax(-1).tolist()
        return [{"label": network.config.id2label[number], "score": share} for number, share in enumerate(shares)]

    return classify


def _processor(sides: Sides) -> Any:
    """Loads the image processor from the Hugging Face folder, with the transformers library."""
    with reading("AutoImageProcessor"):
        return transformers.AutoImageProcessor.from_pretrained(sides.folder, local_files_only=True)


def compare_vectors(sides: Sides) -> Iterator[Line]:
    """Compares the image vectors, scaled to length 1, that the run and the transformers library compute for test
    images. Yields one entry of the parity certificate.
    """
    network, process, theirs = sides.network(transformers.AutoModel), _processor(sides), []
    with _pictures(sides.run) as paths:
        ours = [answer.vector for answer in sides.predict(paths)]
        for path in paths:
            with torch.no_grad(), Image.open(path) as picture:
                output = network(**process(picture, return_tensors="pt"))
            vector = output.last_hidden_state[0, 0].numpy()
            theirs.append(vector / np.linalg.norm(vector))
    yield line("vectors", f"{len(ours)} pictures", ours, theirs)


def compare_ranking(sides: Sides) -> Iterator[Line]:
    """Compares the probabilities that the run (an image-text model such as SigLIP) and the transformers library assign
    to texts as descriptions of test images. Yields one entry of the parity certificate, or none if the model does not
    support the comparison.
    """
    texts = sides.short(TEXTS)
    if not texts or sides.run.model.part("images")[1].channels != 3:  # The pipeline converts all pictures to RGB.
        return
    # The pipeline pads texts to 64 tokens for every SigLIP model, whatever its maximum length.
    masks = "segments" in sides.run.model.inputs()
    rank = _piped(sides, texts) if masks else _padded(sides, texts)
    with _pictures(sides.run) as paths:
        with on_cpu():
            ours = [[dict(answer.ranking)[text] for text in texts] for answer in sides.run.rank(paths, texts)]
        theirs = [rank(path) for path in paths]
    yield line("ranked texts", f"{len(texts)} texts for {len(ours)} pictures", ours, theirs)


def _piped(sides: Sides, texts: Sequence[str]) -> Callable[[str], list[float]]:
    """Returns a function that takes the path of an image and returns the probability of each text as its description,
    computed by a pipeline of the transformers library.
    """
    classify = sides.pipeline("zero-shot-image-classification")

    def rank(path: str) -> list[float]:
        found = classify(path, candidate_labels=texts, hypothesis_template="{}")
        return [{choice["label"]: choice["score"] for choice in found}[text] for text in texts]

    return rank


def _padded(sides: Sides, texts: Sequence[str]) -> Callable[[str], list[float]]:
    """Returns a function that takes the path of an image and returns the probability of each text as its description,
    computed by the PyTorch model without a pipeline.

    Texts are padded to the maximum length of the model. A pipeline of the transformers library would pad them to 64
    tokens.
    """
    network, process, tokenizer = (
        sides.network(transformers.AutoModel),
        _processor(sides),
        their_tokenizer(sides.folder),
    )
    longest = sides.run.model.require_text_limits().max_length
    tokens = tokenizer(list(texts), padding="max_length", max_length=longest, return_tensors="pt").input_ids

    def rank(path: str) -> list[float]:
        with torch.no_grad(), Image.open(path) as picture:
            output = network(input_ids=tokens, **process(picture, return_tensors="pt"))
        return output.logits_per_image[0].sigmoid().tolist()

    return rank


@contextlib.contextmanager
def _pictures(run: Run) -> Iterator[list[str]]:
    """Context manager that writes test images to temporary files, with as many channels as the model expects, and
    yields their paths. The files are deleted at the end.
    """
    channels = run.model.part("images")[1].channels
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for number, (height, width) in enumerate(PICTURES):
            coarse = rng.integers(0, 256, (6, 5) if channels == 1 else (6, 5, 3), np.uint8)
            paths.append(str(Path(folder) / f"{number}.png"))
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(paths[-1])
        yield paths
