"""Images in place of a config's own, and the config made small enough for a test."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from small_video import animation

from jaxformer.config import Experiment
from jaxformer.data.sources.clips import ClipFolders
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.data.sources.segmentation import MaskFolders
from jaxformer.data.sources.sources import JsonLines
from jaxformer.parallel.sharding import Mesh

LABELS = ("dark", "light")


def shrunk(experiment: Experiment) -> dict:
    """Overrides that leave one narrow block, few patches and two labels."""
    stacks = experiment.model.stacks()
    small = {f"model.{name}.{field}": size for name in stacks for field, size in SIZES.items()}
    field = "clip" if experiment.model.pixel_input == "clips" else "image"
    small |= {"model.image": 8, f"data.task.{field}.size": 8}
    if "patch" in type(experiment.model).__dataclass_fields__:
        small["model.patch"] = 4
    if hasattr(experiment.data.task, "max_boxes"):
        small["data.task.image.shortest"] = None
    if hasattr(getattr(experiment.model, "backbone", None), "depths"):
        small |= {"model.backbone.depths": (1, 1), "model.backbone.widths": (8, 16), "model.backbone.stem": 4}
    if hasattr(getattr(experiment.model, "backbone", None), "patch"):  # Whose convolutions have sizes of their own.
        small |= {"model.image": 16, "data.task.image.size": 16}
    if getattr(experiment.model, "stem", None) is not None:
        small |= {"model.stem.patch": 4, "model.stem.width": SIZES["width"]}
    if "stage_1" in stacks:  # The encoder divides the sides of an image by 32.
        small.pop("model.patch", None)
        small |= {"model.image": 32, "data.task.image.size": 32}
        small |= {f"model.{name}.attention.reduction": 1 for name in stacks}
    if field == "clip":
        small |= {"model.frames": 4, "data.task.clip.frames": 4}
    if hasattr(experiment.data.task, "patch"):
        small["data.task.patch"] = 4
    if hasattr(experiment.model, "labels"):
        small |= {"model.labels": LABELS, "data.task.labels": LABELS}
    return small | {"data.batch": 8, "data.workers": 0, "steps": 2, "mesh": Mesh(1), "init": None}


def shrunk_towers(experiment: Experiment) -> dict:
    """The same for a model of images and texts."""
    stacks = [path.replace("/", ".") for path in experiment.model.stacks()]
    small = {f"model.{stack}.{field}": size for stack in stacks for field, size in SIZES.items()}
    parts = [name for name in ("vision", "vae") if getattr(experiment.model, name, None) is not None]
    of_images = ".".join(["model", *parts])
    small |= {f"{of_images}.image": 8, f"{of_images}.patch": 4, "data.task.image.size": 8}
    of_text = "model.text" if hasattr(experiment.model, "text") else "model"
    small |= {f"{of_text}.vocab": 300, "tokenizer.vocab": 60}
    return small | {"data.batch": 8, "data.workers": 0, "steps": 2, "mesh": Mesh(1), "init": None}


def described(experiment: Experiment, folder: Path) -> dict:
    """Pictures with a line of the folder's texts each, by the fields of an experiment."""
    found, column = {}, experiment.data.task.text.column
    for number, split in enumerate(("train", "validation")):
        lines = [line for line in (folder / f"{split}.txt").read_text().split("\n") if line][:12]
        write(folder / "images" / split, len(lines), 100, seed=number)
        paths = (str(folder / "images" / split / f"{place}.png") for place in range(len(lines)))
        examples = [{"image": path, column: line} for path, line in zip(paths, lines, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
        found[f"data.{split}"] = JsonLines((str(folder / f"{split}.jsonl"),))
    return found


def clips(folder: Path, experiment: Experiment) -> dict:
    """Dark and light clips for training and for validation, by the fields of an experiment."""
    for split, count in (("train", 8), ("validation", 3)):
        for number, label in enumerate(LABELS):
            home = folder / "clips" / split / label
            home.mkdir(parents=True, exist_ok=True)
            noise = np.random.default_rng(number).integers(0, 100, (count, 6, 12, 10, 3), np.uint8) + 100 * number
            for place, frames in enumerate(noise.astype(np.uint8)):
                (home / f"{place}.webp").write_bytes(animation(frames))
    found = {f"data.{split}": ClipFolders(str(folder / "clips" / split)) for split in ("train", "validation")}
    return found | ({"data.task.label": "label"} if hasattr(experiment.data.task, "label") else {})


def segmented(folder: Path, experiment: Experiment) -> dict:
    """Dark and light pictures with masks for training and for validation, by the fields of an experiment."""
    for split, count in (("train", 8), ("validation", 3)):
        for number in range(2):
            write(folder / split / "images" / str(number), count, 100 * number, seed=number)
            for place in range(count):
                (folder / split / "masks" / str(number)).mkdir(parents=True, exist_ok=True)
                mask = Image.fromarray(np.full((12, 10), number, np.uint8))
                mask.save(folder / split / "masks" / str(number) / f"{place}.png")
    homes = {
        split: (str(folder / split / "images"), str(folder / split / "masks")) for split in ("train", "validation")
    }
    plain = {"data.task.objects": None, "data.task.zero_is_unlabelled": False}
    return {f"data.{split}": MaskFolders(*home) for split, home in homes.items()} | plain


SIZES = {"width": 16, "depth": 1, "heads": 2}


def sources(folder: Path) -> dict:
    """Dark and light pictures for training and for validation, by the fields of an experiment."""
    for split, count in (("train", 8), ("validation", 3)):
        for number, label in enumerate(LABELS):
            write(folder / "images" / split / label, count, 100 * number, seed=number)
    splits = ("train", "validation")
    return {f"data.{split}": ImageFolders(str(folder / "images" / split)) for split in splits}


def boxed(experiment: Experiment, folder: Path) -> dict:
    """Pictures with one object each, and one picture without, by the fields of an experiment."""
    found = {}
    box = [0.25, 0.2, 0.75, 0.8] if experiment.data.task.box_format == "fractions" else [2, 3, 8, 9]
    for number, split in enumerate(("train", "validation")):
        write(folder / "images" / split, 9, 100, seed=number)
        examples = [
            {
                "image": str(folder / "images" / split / f"{place}.png"),
                "objects": {"bbox": [box] * min(place, 1), "label": [LABELS[place % 2]] * min(place, 1)},
            }
            for place in range(9)
        ]
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, examples)))
        found[f"data.{split}"] = JsonLines((str(folder / f"{split}.jsonl"),))
    return found


def write(folder: Path, count: int, least: int, seed: int) -> None:
    """`count` pictures of noise that is brighter than `least` of 255."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(least, least + 100, (12, 10, 3), np.uint8)).save(folder / f"{number}.png")
