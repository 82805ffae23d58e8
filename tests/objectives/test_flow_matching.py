"""Flow matching: its loss against the formula, on meshes and in micro-batches, and a DiT that learns colors."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from PIL import Image
from small_bert import assert_trees_close, noisy_params, small_bert
from small_clip import TOKENIZER
from small_dalle import VAE
from small_dit import COLORS, LABELS, OF_CLASSES, OF_TEXTS, batch_of, colored

import jaxformer as jf
from jaxformer import cli, run_commands
from jaxformer.data.pipeline.loader import train_batches
from jaxformer.data.tasks.drawing import ImagesFromLabels, ImagesFromText
from jaxformer.errors import InputError
from jaxformer.objectives.flow_matching import FlowMatching, draw
from jaxformer.parallel import sharding
from jaxformer.training.gradients import loss_and_gradient

IMAGE = jf.data.ImageField(8)
TEXTS, CLASSES = ImagesFromText(IMAGE, jf.data.TextField(length=24)), ImagesFromLabels(IMAGE, labels=LABELS)
BATCH = batch_of(8)


def params_of(model):
    arrays = {name: BATCH[name][:1] for name in ("images", "tokens", "segments") if name in model.inputs()}
    return noisy_params(model, **arrays)


def experiment_of(model, source=None, **fields):
    is_of_text = model.text is not None
    data = jf.data.Data(source or jf.data.JsonLines(("never read",)), TEXTS if is_of_text else CLASSES, batch=8)
    sampling = jf.Sampling(steps=4, guidance=1.5, pictures=2)
    parts = {
        "objective": FlowMatching(0.05, "uniform", "image", sampling),
        "tokenizer": jf.tokenizers.WordPiece(60) if is_of_text else None,
        "optimizer": jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-2, warmup=5, decay="cosine")),
        "steps": 200,
        "mesh": jf.Mesh(1),
    }
    return jf.Experiment(model=model, data=data, **(parts | fields))


@pytest.mark.parametrize("predicts", ["velocity", "image"])
def test_the_loss_is_the_error_of_the_velocity(predicts):
    params, objective = params_of(OF_CLASSES), FlowMatching(predicts=predicts)

    @jax.jit
    def both(params):
        draws = draw(BATCH["seeds"][:, 0], (8, 8, 3))
        images = BATCH["images"] / 127.5 - 1
        share = draws.times[:, None, None, None]
        noisy = (1 - share) * images + share * draws.noise
        output = OF_CLASSES.apply({"params": params}, noisy, 1000 * draws.times, BATCH["labels"][:, 0])
        return objective(OF_CLASSES, params, BATCH), (draws, images, noisy, output.velocity)

    terms, (draws, images, noisy, found) = jax.device_get(both(params))
    if predicts == "image":
        found = (noisy - found) / np.maximum(draws.times, 0.05)[:, None, None, None]
    errors = np.square(found - (draws.noise - images)).mean((1, 2, 3))
    np.testing.assert_allclose(terms["loss"].value, errors[:-1].mean(), rtol=1e-5)
    assert terms["loss"].weight == 7 and abs(draws.noise.mean()) < 0.1 and 0.9 < draws.noise.std() < 1.1


@pytest.mark.slow
def test_in_latents_the_autoencoder_has_no_gradient_and_decodes_the_images():
    model = dataclasses.replace(OF_CLASSES, vae=VAE, image=2, patch=1, channels=VAE.code_width)
    params = noisy_params(model, np.zeros((1, 2, 2, VAE.code_width), np.float32))
    assert params["vae"].keys() == noisy_params(VAE, BATCH["images"][:1]).keys()

    @jax.jit
    def compute(params):
        latents = model.apply({"params": params}, BATCH["images"], method="encode_images")
        decoded = model.apply({"params": params}, latents, method="decode_images")
        expected = VAE.apply({"params": params["vae"]}, BATCH["images"]).pixels
        loss = FlowMatching()(model, params, BATCH, jax.random.key(0))["loss"].value
        return loss, (latents, decoded, expected)

    (_, (latents, decoded, expected)), gradient = jax.jit(jax.value_and_grad(compute, has_aux=True))(params)
    assert latents.shape == (8, 2, 2, 4)
    np.testing.assert_allclose(np.square(latents).mean(-1), 1, rtol=1e-4)
    np.testing.assert_allclose(decoded, np.clip(127.5 * (expected + 1), 0, 255), atol=0.6)
    assert not any(np.any(array) for array in jax.tree.leaves(gradient["vae"]))
    assert abs(gradient["head"]["kernel"]).max() > 1e-4
    objective = FlowMatching(sampling=jf.Sampling(steps=2, pictures=2))
    (answer,) = objective.predictor(model, params, None).predict(["two"])
    assert answer.images.shape == (2, 8, 8, 3) and answer.images.dtype == np.uint8
    objective.check(model, CLASSES.row)
    with pytest.raises(InputError, match=r"model.image=4 and model.channels=4: the latents of model.vae have 2 and 4"):
        dataclasses.replace(model, image=4)


@pytest.mark.slow
def test_micro_batches_on_a_mesh_have_the_loss_and_gradient_of_one_device():
    params, key = params_of(OF_TEXTS), jax.random.key(0)
    compute = jax.jit(loss_and_gradient, static_argnums=0)
    expected, gradient = jax.device_get(compute(experiment_of(OF_TEXTS), params, BATCH, key))
    optimizer, shape = jf.optimizers.AdamW(accumulate=2), jf.Mesh(data=2, fsdp=2, tensor=2)
    mesh = sharding.make_mesh(shape)
    with sharding.use(mesh, shape):
        laid = sharding.global_batch(BATCH, sharding.local_rows(8, mesh), 8, mesh)
        experiment = experiment_of(OF_TEXTS, mesh=shape, optimizer=optimizer)
        means, whole = jax.device_get(compute(experiment, jax.device_get(params), laid, key))
    np.testing.assert_allclose(means["loss"].value, expected["loss"].value, rtol=1e-5)
    assert_trees_close(whole, gradient, 1e-4)
    # The text reaches the prediction by cross-attention and by the condition.
    assert abs(gradient["transformer"]["blocks"]["cross_attention"]["value"]["kernel"]).max() > 1e-4
    assert abs(gradient["text_projection"]["kernel"]).max() > 1e-4 and abs(gradient["no_text"]).max() > 1e-4


@pytest.mark.slow
def test_a_dropped_text_and_an_empty_one_are_the_same():
    params, objective = params_of(OF_TEXTS), FlowMatching(dropped=0.999999)

    @jax.jit
    def losses(params, key):
        without = BATCH | {"segments": np.zeros_like(BATCH["segments"])}
        batches = (BATCH, without)
        return [objective(OF_TEXTS, params, batch, key)["loss"].value for batch in batches] + [
            FlowMatching()(OF_TEXTS, params, BATCH)["loss"].value
        ]

    dropped, empty, kept = losses(params, jax.random.key(0))
    assert dropped == empty and dropped != kept


@pytest.mark.slow
def test_a_dit_learns_colors_and_predict_saves_them(tmp_path, monkeypatch, capsys):
    source = colored(tmp_path / "images")
    experiment = experiment_of(OF_TEXTS, source)
    experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, validation=source))
    run = jf.fit(experiment, tmp_path / "run", quiet=True)
    assert run.evaluate()["loss"] < 0.5
    answers = run.predict(["red", "green"])
    for answer, name in zip(answers, COLORS, strict=True):
        assert answer.images.shape == (2, 8, 8, 3)
        assert abs(answer.images.mean((0, 1, 2)) - COLORS[name]).max() < 60, answer.images.mean((0, 1, 2))
    again = run.predict("green")
    np.testing.assert_allclose(again.images, answers[1].images, atol=1)  # Whatever the other requests are.

    monkeypatch.setattr(run_commands, "opened", lambda *_, **__: run)
    page, folder = tmp_path / "page.html", tmp_path / "drawn"
    assert cli.main(["predict", "RUN", "red", "a <b> & green", "--out", str(page)]) == 0
    html = page.read_text()
    assert html.count("<img") == 4 and "a &lt;b&gt; &amp; green" in html and html.count("<tr>") == 2
    assert cli.main(["predict", "RUN", "red", "green", "--out", str(folder)]) == 0
    names = {path.name for path in folder.iterdir()}
    assert names == {"1_red_1.png", "1_red_2.png", "2_green_1.png", "2_green_2.png"} | {
        "grid.png",
        "page.html",
        "answers.json",
    }
    capsys.readouterr()
    assert cli.main(["predict", "RUN", "red"]) == 0
    assert "red: 2 images of 8 × 8 pixels" in capsys.readouterr().out
    settings = ["--guidance", "1", "--pictures", "3", "--steps", "2", "--method", "euler", "--seed", "5"]
    assert cli.main(["predict", "RUN", "red", *settings, "--out", str(tmp_path / "grid.png")]) == 0
    with Image.open(tmp_path / "grid.png") as drawn:
        assert drawn.size == (3 * 8 + 2 * 2, 8)
    assert cli.main(["predict", "RUN", "red", "--temperature", "1"]) == 2
    assert "objective.sampling.temperature: no such field" in capsys.readouterr().err
    assert cli.main(["predict", "RUN", " "]) == 2
    assert "text 1: empty; expected a text to generate an image from" in capsys.readouterr().err


def test_an_empty_caption_is_named_with_its_file_and_line(tmp_path):
    data = jf.data.Data(colored(tmp_path, ("red", " ")), TEXTS, batch=8)
    line = r"pairs\.jsonl: line \d+: data\.task\.text\.column='text': the text is empty; expected one that describes"
    with pytest.raises(InputError, match=line), train_batches(data, TOKENIZER, 0, range(8)) as batches:
        next(batches)


@pytest.mark.parametrize(
    ("model", "task", "line"),
    [
        (OF_TEXTS, CLASSES, "model.text: the task's rows have no tokens; use ImagesFromText"),
        (OF_CLASSES, TEXTS, "model.labels: the task's rows have no labels; use ImagesFromLabels"),
        (OF_CLASSES, jf.data.ImageTask(IMAGE), "the task's rows have no seeds; use one such as ImagesFromText"),
        (small_bert(), TEXTS, "objective=FlowMatching: needs a Dit; the model is a Bert"),
        (
            dataclasses.replace(OF_CLASSES, image=16),
            CLASSES,
            "data.task.image.size=8 differs from model.image=16",
        ),
        (
            dataclasses.replace(OF_CLASSES, out_channels=6),
            CLASSES,
            "model.out_channels=6: expected None, one velocity per channel",
        ),
    ],
)
def test_what_does_not_fit_is_refused(model, task, line):
    with pytest.raises(InputError, match=re.escape(line)):
        FlowMatching().check(model, task.row)


def test_requests_and_settings_that_make_no_sense():
    with pytest.raises(InputError, match=re.escape("'three': no such class; expected one of zero, one, two")):
        CLASSES.prepare_requests(["three"])
    with pytest.raises(InputError, match=r"data\.task\.mixup=0\.5: expected 0, because an image has one class"):
        dataclasses.replace(CLASSES, mixup=0.5)
    with pytest.raises(InputError, match=re.escape("expected none with model.text, or model.text=None")):
        dataclasses.replace(OF_TEXTS, labels=LABELS)
    with pytest.raises(InputError, match=re.escape("text 2: empty; expected a text")):
        TEXTS.prepare_requests(["red", "\n"])
