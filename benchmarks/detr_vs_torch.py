"""A small DETR here and in PyTorch, trained on scenes of emoji: average precision on held-out scenes, and the time.

    pip install '.[torch,coco]' && python benchmarks/detr_vs_torch.py --seeds 0

Both sides have a DETR with a small ResNet and the stacks of configs/detr_scenes.py, with the same first weights,
batches in the same order, and the same optimizer and schedule. Ours is `fit`. PyTorch's is transformers'
DetrForObjectDetection, eager, in a plain loop, with its loss and its matching by SciPy; the losses of the layers are
computed here from the output of each, because transformers would change the input of the next layer. Both are evaluated
by the same code, for which PyTorch's weights are imported. Each training has a process of its own, one after the other.
Times are of training with reading and compiling, without evaluation.
"""

import argparse
import copy
import dataclasses
import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from turns import OURS, alone, conclude

CONFIG = Path(__file__).parent.parent / "configs" / "detr_scenes.py"
GOALS = {"ap_difference": -0.02, "time": 1.25}
SIDE = {"norm_position": "after", "dtype": "float32"}
"""Fields of the encoder and of the decoder that differ from those of the config."""


def experiment(steps: int, seed: int):
    """Returns the config's experiment, with a model that transformers has too, and without evaluations."""
    import jaxformer as jf

    settings = {"seed": seed, "steps": steps, "checkpoint.every": steps, "checkpoint.best": None}
    whole = jf.load(CONFIG, settings | {"data.validation": None})
    sides = {name: dataclasses.replace(getattr(whole.model, name), **SIDE) for name in ("encoder", "decoder")}
    backbone = jf.layers.ResNet((1, 1, 1), (32, 64, 128), stem=32, bottleneck=False, dtype="float32")
    return dataclasses.replace(
        whole,
        model=jf.models.Detr(backbone, **sides, labels=whole.model.labels, queries=16, image=whole.model.image),
        optimizer=dataclasses.replace(whole.optimizer, weight_decay=0.0),
        mesh=jf.Mesh(1),
    )


def prepare(home: Path, steps: int, seed: int) -> float:
    """Writes the first weights as a folder of transformers. Returns their loss on the first batch."""
    import jax

    from jaxformer.data.pipeline.loader import train_batches
    from jaxformer.interop.huggingface.models import export_hf
    from jaxformer.parallel.sharding import make_mesh
    from jaxformer.training.state import abstract_state, init_state

    ours = experiment(steps, seed)
    params = init_state(ours, abstract_state(ours, make_mesh(ours.mesh))).params
    export_hf(ours.model, params, None, home / f"first{seed}")
    with train_batches(ours.data, None, seed, range(ours.data.batch)) as batches:
        means = jax.jit(functools.partial(ours.objective, ours.model))(params, next(batches)[0], jax.random.key(0))
    return float(sum(weight * means[name].value for name, weight in ours.objective.loss_weights.items()))


def train_ours(home: Path, steps: int, seed: int, first: float) -> tuple[float, float]:
    """Returns the seconds of the training, and the average precision on held-out scenes."""
    import jaxformer as jf

    del first
    ours = experiment(steps, seed)
    start = time.perf_counter()
    run = jf.fit(ours, home / f"run{seed}", quiet=True)
    return time.perf_counter() - start, precision_of(run)


def train_theirs(home: Path, steps: int, seed: int, first: float) -> tuple[float, float]:
    """The same in PyTorch. `first` is the loss that the first batch should have."""
    import torch
    import transformers

    import jaxformer as jf
    from jaxformer.data.pipeline.loader import train_batches
    from jaxformer.interop.huggingface.models import import_hf
    from jaxformer.parallel.sharding import make_mesh

    ours = experiment(steps, seed)
    network = transformers.DetrForObjectDetection.from_pretrained(home / f"first{seed}").train()
    network.requires_grad_(True)  # transformers freezes the stem and the first stage.
    settings, rates = ours.optimizer, np.asarray(ours.optimizer.schedule(steps)(np.arange(steps)))
    optimizer = torch.optim.AdamW(network.parameters(), 0.0, (settings.b1, settings.b2), settings.eps, 0.0)
    start = time.perf_counter()
    with train_batches(ours.data, None, seed, range(ours.data.batch)) as batches:
        for step in range(steps):
            loss = loss_of(network, ours.model, next(batches)[0])
            if step == 0:
                assert abs(loss.item() - first) < 1e-3 * first, f"not the same: loss {loss.item()}, ours has {first}"
            optimizer.param_groups[0]["lr"] = float(rates[step])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            optimizer.step()
            optimizer.zero_grad()
    seconds = time.perf_counter() - start
    network.save_pretrained(last := home / f"last{seed}")
    return seconds, precision_of(jf.Run(last, ours, None, 0, import_hf(last)[1], make_mesh(ours.mesh)))


def loss_of(network: Any, model: Any, batch: dict[str, np.ndarray]) -> Any:
    """Returns the loss of a batch with the losses of all decoder layers."""
    import torch

    mask = torch.from_numpy(batch["pixel_mask"]).long()
    mean, std = (np.array(numbers, np.float32) for numbers in (model.mean, model.std))
    pixels = torch.from_numpy((batch["images"] / np.float32(255) - mean) / std) * mask[..., None]
    labels = [
        {"class_labels": torch.from_numpy(labels[some]).long(), "boxes": torch.from_numpy(boxes[some])}
        for labels, boxes, some in zip(batch["labels"], batch["boxes"], batch["box_weights"] > 0, strict=True)
    ]
    found = []

    def keep(layer: Any, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [layer.register_forward_hook(keep) for layer in network.model.decoder.layers]
    network.model(pixel_values=pixels.permute(0, 3, 1, 2), pixel_mask=mask)
    for handle in handles:
        handle.remove()
    hidden = network.model.decoder.layernorm(torch.stack(found))
    logits, boxes = network.class_labels_classifier(hidden), network.bbox_predictor(hidden).sigmoid()
    config = copy.copy(network.config)
    config.auxiliary_loss = True
    return network.loss_function(logits[-1], labels, "cpu", boxes[-1], config, logits, boxes)[0]


def precision_of(run: Any) -> float:
    """Returns the average precision of a run on the held-out scenes of the config."""
    import jaxformer as jf

    data = dataclasses.replace(run.experiment.data, validation=jf.load(CONFIG).data.validation)
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, data=data))
    return run.evaluate()["ap"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0", help="of the first weights and the data's order")
    parser.add_argument("--steps", type=int, default=4000, help="of each training")
    options = parser.parse_args()
    sides = {OURS: train_ours, "torch": train_theirs}
    found = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(int, options.seeds.split(",")):
            first = alone(OURS, prepare, Path(folder), options.steps, seed)
            for name, train in sides.items():
                seconds, precision = alone(name, train, Path(folder), options.steps, seed, first)
                found[name].append((seconds, precision))
                print(f"{name:10} seed {seed}   {seconds:7.1f} s   average precision {precision:.3f}", flush=True)
    (seconds, precision), (their_seconds, their_precision) = (np.mean(rows, axis=0) for rows in found.values())
    results = []
    for name, value in {"ap_difference": precision - their_precision, "time": their_seconds / seconds}.items():
        line = {"benchmark": f"detr_vs_torch/{name}", "ratio": round(float(value), 3), "goal": GOALS[name]}
        results.append(line | {"met": bool(value >= GOALS[name])})
    return conclude(results)


if __name__ == "__main__":
    sys.exit(main())
