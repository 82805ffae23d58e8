"""The models whose training steps benchmarks measure: each is a config of the repository with a batch size."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from turns import Step, training_step

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL = {"width": 64, "depth": 2, "heads": 4, "mlp.width": 128}
"""Fields of the stacks of tiny models."""
SIDES = ("encoder", "decoder")
STAGES = tuple(f"stage_{number}" for number in range(1, 5))
"""Names of the stacks of SegFormer."""
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0}


@dataclasses.dataclass(frozen=True)
class Row:
    """A model, the size of its batch and what is expected of it."""

    name: str
    config: str
    """Name of the config in configs/."""
    batch: int
    """Batch rows per step."""
    torch: str | None
    """Name of the function in `torch_models.py` that makes the PyTorch model. None if PyTorch has no such model."""
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the config that differ, by dotted path."""
    toy: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Further fields that differ in a tiny model, which checks a benchmark on a CPU."""
    unit: str = "tokens"
    utilisation: float = 0.0
    """Goal for the share of the device's stated peak. 0: none."""
    speed: float = 0.0
    """Goal for units per second on an H100. 0: none."""


def small(*stacks: str, **others: Any) -> dict[str, Any]:
    """Returns the overrides of a tiny model, whose batch has four rows."""
    return of_stacks(stacks, **SMALL) | {"data.batch": 4} | others


def of_stacks(stacks: Iterable[str], **values: Any) -> dict[str, Any]:
    """Returns overrides that give each stack of a model, or its backbone, the same values in some fields."""
    return {f"model.{stack}.{name}": value for stack in stacks for name, value in values.items()}


def detr(size: int, dtype: str) -> dict[str, Any]:
    """Returns overrides of a DETR for images of a size, without dropout, that computes in a dtype."""
    images = {"model.image": size, "data.task.image.size": size, "data.task.image.shortest": None}
    return images | of_stacks(("backbone", *SIDES), dtype=dtype) | of_stacks(SIDES, **NO_DROPOUT)


def segformer(size: int, dtype: str) -> dict[str, Any]:
    """Returns overrides of a SegFormer for images of a size, without dropout, that computes in a dtype."""
    images = {"model.image": size, "data.task.image.size": size, "model.head_dropout": 0.0}
    return images | of_stacks(STAGES, dtype=dtype)


def experiment_of(row: Row, toy: bool = False):
    """Returns the row's experiment, with AdamW; its data is not read."""
    import jaxformer as jf

    settings = {"data.batch": row.batch, "mesh": jf.Mesh(), "steps": 1_000_000} | dict(row.overrides)
    settings["optimizer"] = jf.optimizers.AdamW(weight_decay=0.01, clip=1.0)
    return jf.load(CONFIGS / f"{row.config}.py", settings | (dict(row.toy) if toy else {}))


def batch_of(experiment) -> dict[str, np.ndarray]:
    """Returns a batch of random rows, each one whole example."""
    from jaxformer.parallel.sharding import make_mesh
    from jaxformer.training.state import abstract_batch

    shapes = abstract_batch(experiment, make_mesh(experiment.mesh))
    rng = np.random.default_rng(0)
    batch = {
        name: _values(name, leaf.shape, leaf.dtype, experiment, rng).astype(leaf.dtype) for name, leaf in shapes.items()
    }
    if "boxes" not in batch and "labels" in batch:  # One label per image.
        batch["weights"] = np.tile(np.array([1, 0], np.float32), (len(batch["labels"]), 1))
    return batch


def _values(name: str, shape: tuple[int, ...], dtype: Any, experiment, rng: np.random.Generator) -> np.ndarray:
    """Returns values for an array of a batch by its name."""
    model = experiment.model
    if name in ("tokens", "inputs") or (name == "targets" and np.issubdtype(dtype, np.integer)):
        return rng.integers(5, model.vocab, shape)
    if name in ("images", "clips"):
        return rng.integers(0, 256, shape)
    if name in ("labels", "mask"):
        return rng.integers(0, len(model.labels), shape)
    if name in ("noise", "log_mel"):
        return rng.random(shape)
    if name == "seeds":
        return rng.integers(0, 2**31, shape)
    if name == "samples":
        return rng.normal(size=shape)
    if name == "boxes":  # Centres, then sizes, as fractions of the image.
        return np.concatenate([rng.uniform(0.3, 0.7, (*shape[:2], 2)), rng.uniform(0.1, 0.5, (*shape[:2], 2))], -1)
    if name == "box_weights":  # Seven objects per image, about the mean of COCO.
        return np.broadcast_to(np.arange(shape[1]) < 7, shape)
    if name.endswith("position_ids"):
        return np.tile(np.arange(shape[1]), (shape[0], 1))
    if name == "masked_positions":
        places = np.tile(np.arange(experiment.data.task.length), (shape[0], 1))
        return np.sort(rng.permuted(places, axis=1)[:, : shape[1]])
    if name in ("cls_positions", "token_types", "crowd", "areas"):
        return np.zeros(shape)
    if name == "next_sentence":
        return rng.integers(0, 2, shape)
    if name.endswith(("weights", "segments", "pixel_mask", "sample_mask", "image_size")):
        return np.ones(shape)
    raise ValueError(f"no values for the batch array {name}")


def our_step(row: Row, toy: bool = False, steps: int = 1) -> Step:
    """Returns our training step, run `steps` times per call."""
    experiment = experiment_of(row, toy)
    return training_step(experiment, batch_of(experiment), steps)


def torch_side(row: Row, toy: bool, device: str, fused: bool) -> tuple[Any, Any, Callable[[Any], None]]:
    """Returns the model of transformers on a device, the function that computes its loss on the same batch, and one
    that updates the model by the loss with AdamW, as our step does.
    """
    import torch
    import torch_models

    if row.torch is None:
        raise ValueError(f"{row.name} has no model in PyTorch")
    torch.manual_seed(0)
    experiment = experiment_of(row, toy)
    model, loss = getattr(torch_models, row.torch)(experiment, torch_models.tensors(batch_of(experiment), device))
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=fused)

    def update(loss: Any) -> None:
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return model, loss, update


def sizes_of(row: Row, toy: bool = False) -> dict[str, Any]:
    """Returns what is counted per step: `units` (tokens, images, clips or windows) and `flops`."""
    from jaxformer.training.utilization import step_flops

    experiment = experiment_of(row, toy)
    shapes, rows = experiment.data.task.row, experiment.data.batch
    tokens = sum(shapes[name].capacity for name in ("tokens", "inputs") if name in shapes)
    units = rows * tokens if row.unit == "tokens" else rows
    return {"units": units, "flops": step_flops(experiment.model, shapes, rows)}
