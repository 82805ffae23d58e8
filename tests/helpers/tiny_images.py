"""Images in place of a config's own, and the config made small enough for a test."""

from pathlib import Path

import numpy as np
from PIL import Image

from jaxformer.config import Experiment
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.parallel.sharding import Mesh

LABELS = ("dark", "light")


def shrunk(experiment: Experiment) -> dict:
    """Overrides that leave one narrow block, few patches and two labels."""
    stacks = [name for name in ("transformer", "decoder") if hasattr(experiment.model, name)]
    small = {f"model.{name}.{field}": size for name in stacks for field, size in SIZES.items()}
    small |= {"model.image": 8, "model.patch": 4, "data.task.image.size": 8}
    if hasattr(experiment.data.task, "patch"):
        small["data.task.patch"] = 4
    if hasattr(experiment.model, "labels"):
        small |= {"model.labels": LABELS, "data.task.labels": LABELS}
    return small | {"data.batch": 8, "data.workers": 0, "steps": 2, "mesh": Mesh(1), "init": None}


SIZES = {"width": 16, "depth": 1, "heads": 2}


def sources(folder: Path) -> dict:
    """Dark and light pictures for training and for validation, by the fields of an experiment."""
    for split, count in (("train", 8), ("validation", 3)):
        for number, label in enumerate(LABELS):
            write(folder / "images" / split / label, count, 100 * number, seed=number)
    splits = ("train", "validation")
    return {f"data.{split}": ImageFolders(str(folder / "images" / split)) for split in splits}


def write(folder: Path, count: int, least: int, seed: int) -> None:
    """`count` pictures of noise that is brighter than `least` of 255."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(rng.integers(least, least + 100, (12, 10, 3), np.uint8)).save(folder / f"{number}.png")
