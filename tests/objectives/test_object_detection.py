"""Object detection: its loss in parts and on a mesh, a run that learns, and its answers."""

import dataclasses
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from PIL import Image
from small_bert import assert_trees_close
from small_detr import DETR, LABELS, SIZE, TASK, WITH_RESNET, YOLOS, noisy, scenes
from small_vit import VIT

import jaxformer as jf
from jaxformer import cli
from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import JsonLines
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.families.detr import BRIDGE
from jaxformer.layers.image_positions import masked_positions, point_positions
from jaxformer.models.detr import spread_points
from jaxformer.objectives.object_detection import ObjectDetection
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.runs.run import Run
from jaxformer.training.gradients import loss_and_gradient
from jaxformer.training.optimizers import AdamW, Schedule

OBJECTIVE = ObjectDetection(average_precision=False)
SLICES = (slice(5), slice(5, 10))
"""Queries of the first and of the second group of a model with two."""
BATCH = scenes()
PARAMS = noisy(DETR)


def experiment(folder, parts=1, **fields):
    source = JsonLines((f"{folder}/train.jsonl",))
    optimizer = AdamW(Schedule(3e-3, warmup=5, decay="constant"), accumulate=parts)
    data = Data(source, TASK, 8, source)
    return Experiment(DETR, ObjectDetection(), data, None, optimizer, mesh=Mesh(1), **{"steps": 1} | fields)


@pytest.mark.slow
def test_micro_batches_have_the_loss_and_gradient_of_the_whole_batch(tmp_path):
    compute = jax.jit(loss_and_gradient, static_argnums=0)
    (expected, whole), (means, gradient) = (
        compute(experiment(tmp_path, parts), PARAMS, BATCH, jax.random.key(0)) for parts in (1, 2)
    )
    assert set(expected) == set(OBJECTIVE.loss_weights)
    for name, mean in expected.items():
        np.testing.assert_allclose(means[name].value, mean.value, rtol=1e-5, err_msg=name)
    assert float(expected["l1_loss"].weight) == BATCH["box_weights"].sum()
    assert_trees_close(gradient, whole, 1e-4)
    assert min(float(jnp.abs(part).max()) for part in jax.tree.leaves(whole["box"])) > 1e-4


@pytest.mark.slow
def test_a_mesh_has_the_loss_and_gradient_of_one_device():
    def compute(params, batch):
        def loss(params):
            means = OBJECTIVE(DETR, params, batch, jax.random.key(0))
            return sum(weight * means[name].value for name, weight in OBJECTIVE.loss_weights.items())

        return jax.value_and_grad(loss)(params)

    expected, gradient = jax.jit(compute)(PARAMS, BATCH)
    mesh = sharding.make_mesh(Mesh(data=2, fsdp=2))
    with jax.set_mesh(mesh):
        laid = {name: jax.device_put(array, sharding.batch_sharding(mesh)) for name, array in BATCH.items()}
        actual, over_mesh = jax.jit(compute)(jax.device_get(PARAMS), laid)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    assert_trees_close(jax.device_get(over_mesh), gradient, 1e-4)


@pytest.mark.slow
def test_losses_of_layers_and_what_evaluations_add():
    terms = jax.jit(lambda params: ObjectDetection()(DETR, params, BATCH))(PARAMS)
    assert terms["scenes"]["predicted_boxes"].shape == (8, 5, 4) and terms["scenes"]["scores"].shape == (8, 5)
    apply = jax.jit(functools.partial(DETR.apply, all_layers=True))
    output = apply({"params": PARAMS}, BATCH["images"], BATCH["pixel_mask"])
    assert output.layer_logits.shape == (2, 8, 5, 4)
    np.testing.assert_allclose(output.layer_boxes[-1], output.boxes)
    plain = jax.jit(DETR.apply)({"params": PARAMS}, BATCH["images"], BATCH["pixel_mask"])
    np.testing.assert_allclose(plain.boxes, output.boxes, atol=1e-6)
    assert plain.layer_boxes is None
    assert float(jnp.abs(output.layer_boxes[0] - output.boxes).max()) > 1e-4


@pytest.mark.slow
def test_groups_of_queries_do_not_see_each_other_and_their_losses_are_averaged(tmp_path):
    model, single = (dataclasses.replace(DETR, groups=count, reference_points=True) for count in (2, 1))
    params = noisy(model)
    parts = [params | {name: params[name][part] for name in ("queries", "points")} for part in SLICES]

    @jax.jit
    def compute(params, parts):
        key = jax.random.key(0)
        boxes = [
            one.apply({"params": own}, BATCH["images"]).boxes for one, own in ((model, params), (single, parts[0]))
        ]
        return OBJECTIVE(model, params, BATCH, key), [OBJECTIVE(single, part, BATCH, key) for part in parts], boxes

    whole, own, boxes = compute(params, parts)
    for name, mean in whole.items():
        values = [float(losses[name].value) for losses in own]
        np.testing.assert_allclose(mean.value, np.mean(values), rtol=1e-5, err_msg=name)
        assert abs(values[0] - values[1]) > 1e-4
    np.testing.assert_allclose(*boxes, atol=1e-6)
    settings = dataclasses.replace(experiment(tmp_path), model=model)
    form = BRIDGE.to_exportable_form(Run(tmp_path, settings, None, 0, params, sharding.make_mesh(Mesh(1))))
    assert form.model == single and form.params["queries"].shape == (5, 16)


def test_reference_points_are_spread_and_have_the_positions_of_the_feature_map():
    points = np.asarray(jax.nn.sigmoid(spread_points(jax.random.key(0), (32, 2))))
    for count in (16, 32):
        quarters = np.bincount((points[:count] > 0.5) @ [1, 2], minlength=4)
        assert abs(quarters - count / 4).max() <= 2
    rows, columns = np.indices((4, 6)).reshape(2, -1) + 1
    at_ends = point_positions(jnp.asarray(np.stack([columns / 6, rows / 4], -1), jnp.float32), 16)
    np.testing.assert_allclose(at_ends, masked_positions(jnp.ones((1, 4, 6)), 16)[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", [DETR, WITH_RESNET], ids=["patches", "resnet"])
def test_the_content_of_padding_has_no_effect(model):
    params, apply = (
        noisy(model),
        jax.jit(lambda params, images: model.apply({"params": params}, images, BATCH["pixel_mask"])),
    )
    changed = np.where(BATCH["pixel_mask"][..., None] > 0, BATCH["images"], 77).astype(np.uint8)
    assert (changed != BATCH["images"]).any()
    for one, other in zip(
        jax.tree.leaves(apply(params, BATCH["images"]).boxes),
        jax.tree.leaves(apply(params, changed).boxes),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_frozen_norms_have_no_gradient():
    params = noisy(WITH_RESNET)
    gradient = jax.jit(jax.grad(lambda params: WITH_RESNET.apply({"params": params}, BATCH["images"]).boxes.sum()))(
        params
    )
    block = gradient["backbone"]["stage1_block0"]
    assert float(jnp.abs(block["conv1"]["kernel"]).max()) > 0
    assert not any(np.any(part) for part in jax.tree.leaves(block["norm1"])) and set(block["norm1"]) == {
        "scale",
        "bias",
        "mean",
        "variance",
    }


WRONG = {
    "objective=ObjectDetection: needs a Detr or a Yolos; the model is a Vit": (VIT, TASK),
    "data.task.max_boxes=9: expected at most model.queries=5": (DETR, dataclasses.replace(TASK, max_boxes=9)),
    "data.task.image.size=20 is not a multiple of model.patch=8": (
        DETR,
        dataclasses.replace(TASK, image=ImageField(20, fit="pad")),
    ),
    "data.task.image.channels=1 differs from model.channels=3": (
        YOLOS,
        dataclasses.replace(TASK, image=ImageField(16, 1, fit="pad")),
    ),
}


@pytest.mark.parametrize("problem", WRONG)
def test_parts_that_do_not_fit_are_refused(problem):
    model, task = WRONG[problem]
    with pytest.raises(InputError, match=re.escape(problem)):
        OBJECTIVE.check(model, task.row)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"average_precision=True: needs pycocotools; pip install 'jaxformer\[coco\]'"):
        ObjectDetection().check(DETR, TASK.row)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: dataclasses.replace(DETR, labels=()), r"model.labels=\(\): expected at least one"),
        (lambda: dataclasses.replace(DETR, queries=0), "model.queries=0"),
        (lambda: dataclasses.replace(DETR, groups=0), "model.groups=0: expected at least 1"),
        (
            lambda: dataclasses.replace(DETR, decoder=dataclasses.replace(DETR.decoder, norm_position="before")),
            "model.decoder.norm_position=before: expected after",
        ),
        (lambda: dataclasses.replace(YOLOS, image_width=18), "model.image_width=18: expected a multiple"),
        (lambda: dataclasses.replace(DETR.backbone, patch=5), "backbone.patch=5: expected a multiple of 2"),
        (lambda: dataclasses.replace(WITH_RESNET.backbone, depths=(1,)), "backbone.depths"),
        (lambda: ObjectDetection(threshold=2.0), "objective.threshold=2.0"),
    ],
)
def test_fields_that_are_not_valid_are_refused(make, problem):
    with pytest.raises(InputError, match=problem):
        make()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures with one bright square, on the left for cats and on the right for dogs, and one picture without."""
    home = tmp_path_factory.mktemp("scenes")
    lines = []
    for number in range(16):
        pixels = np.full((SIZE, SIZE - 4 * (number % 2), 3), 40, np.uint8)
        left = 2 + 5 * (number % 2)
        objects = {"bbox": [], "label": []}
        if number:
            pixels[4 : 10 + number % 3, left : left + 4] = (250, 60 * (number % 4), 0)
            objects = {"bbox": [[left, 4, left + 4, 10 + number % 3]], "label": [LABELS[number % 2]]}
        Image.fromarray(pixels).save(home / f"{number}.png")
        lines.append(json.dumps({"image": str(home / f"{number}.png"), "objects": objects}))
    (home / "train.jsonl").write_text("\n".join(lines))
    return home


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    pytest.importorskip("pycocotools")
    settings = experiment(folder, steps=150, evaluation=Evaluation(every=75), log=Log(every=75))
    settings = dataclasses.replace(
        settings, objective=ObjectDetection(threshold=0.3), checkpoint=Checkpoint(every=75, best="ap_50")
    )
    return jf.fit(settings, tmp_path_factory.mktemp("runs") / "detr", quiet=True)


@pytest.mark.slow
def test_a_run_learns_and_its_answers_are_pictures_and_pages(run, folder, tmp_path, capsys):
    first, last = tiny.metrics(run.folder, "validation")
    assert last["loss"] < first["loss"] and last["ap_50"] > 0.5 and set(LABELS) >= {"cat", "dog"}
    lines = run.demonstrate()
    assert len(lines) == 4 and lines[0].endswith("; there: nothing") and "dog" in lines[1]
    answer = run.predict(str(folder / "1.png"))
    assert answer.objects and answer.objects[0].label == "dog"
    left, upper, right, lower = answer.objects[0].box
    assert 0 <= left < right <= 12 and 0 <= upper < lower <= 16
    assert f"{folder}/1.png" in str(answer) and "dog at" in str(answer)
    paths = [str(folder / f"{number}.png") for number in (1, 2)]
    cli.main(["predict", str(run.folder), paths[0], "--out", str(tmp_path / "one.png")])
    cli.main(["predict", str(run.folder), *paths, "--out", str(tmp_path / "page.html")])
    cli.main(["predict", str(run.folder), *paths, "--out", str(tmp_path / "folder")])
    cli.main(["predict", str(run.folder), *paths, "--json"])
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert found[0]["objects"][0]["label"] == "dog" and len(found[0]["objects"][0]["box"]) == 4
    assert Image.open(tmp_path / "one.png").size == (12 * 20, 16 * 20)
    text = (tmp_path / "page.html").read_text()
    assert text.count("<figure>") == 2 and text.count("data:image/png;base64,") == 2
    assert {path.name for path in (tmp_path / "folder").iterdir()} == {
        "1_1.png",
        "2_2.png",
        "answers.json",
        "index.html",
    }
    assert answer._repr_html_().startswith("<figure>")


@pytest.mark.slow
def test_a_picture_that_cannot_be_read_is_named(run, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"broken.png: cannot be decoded"):
        run.predict(str(tmp_path / "broken.png"))
