"""DALL·E: an autoencoder that uses all of its codes, a decoder that draws from them, and images ordered by a CLIP."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from small_bert import assert_trees_close, noisy_params, small_bert
from small_clip import SOFTMAX, TASK, small_run
from small_dalle import DALLE, VAE
from small_dit import COLORS, batch_of, colored

import jaxformer as jf
from jaxformer import cli, run_commands
from jaxformer.data.tasks.drawing import ImagesFromText
from jaxformer.errors import InputError
from jaxformer.metrics.codes import CodeUsage
from jaxformer.metrics.means import Mean
from jaxformer.objectives.discrete_autoencoding import DiscreteAutoencoding
from jaxformer.objectives.image_tokens import ImageTokens
from jaxformer.parallel import sharding
from jaxformer.training.gradients import loss_and_gradient

BATCH = batch_of(8)
IMAGE = jf.data.ImageField(8)
TEXTS, IMAGES = ImagesFromText(IMAGE, jf.data.TextField(length=24)), jf.data.ImageTask(IMAGE)
MODELS = {"autoencoder": VAE, "decoder": DALLE}


def params_of(model):
    arrays = {name: BATCH[name][:1] for name in ("images", "tokens", "segments") if name in model.inputs()}
    return noisy_params(model, **arrays)


def experiment_of(model, source=None, **fields):
    is_decoder = model is DALLE
    source = source or jf.data.JsonLines(("never read",))
    optimizer = {"schedule": jf.optimizers.Schedule(peak=1e-2, warmup=5, decay="cosine")}
    parts = {
        "objective": ImageTokens(pictures=3, guidance=1.5) if is_decoder else DiscreteAutoencoding(),
        "tokenizer": jf.tokenizers.WordPiece(60) if is_decoder else None,
        "optimizer": jf.optimizers.AdamW(**optimizer, freeze=("^vae/",) if is_decoder else ()),
        "steps": 60,
        "mesh": jf.Mesh(1),
    }
    data = jf.data.Data(source, TEXTS if is_decoder else IMAGES, batch=8, validation=source)
    return jf.Experiment(model=model, data=data, **(parts | fields))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_micro_batches_on_a_mesh_have_the_loss_and_gradient_of_one_device(name):
    model, params, key = MODELS[name], params_of(MODELS[name]), jax.random.key(0)
    experiment = experiment_of(model, optimizer=jf.optimizers.AdamW())
    compute = jax.jit(loss_and_gradient, static_argnums=0)
    means, gradient = jax.device_get(compute(experiment, params, BATCH, key))
    expected = {name: mean.value for name, mean in means.items()}
    assert set(experiment.objective.loss_weights) <= set(expected)
    shape = jf.Mesh(data=2, fsdp=2, tensor=2)
    parts = dataclasses.replace(experiment, optimizer=jf.optimizers.AdamW(accumulate=2), mesh=shape)
    mesh = sharding.make_mesh(shape)
    with sharding.use(mesh, shape):
        laid = sharding.global_batch(BATCH, sharding.local_rows(8, mesh), 8, mesh)
        means, found = jax.device_get(compute(parts, jax.device_get(params), laid, key))
    for term, value in expected.items():
        np.testing.assert_allclose(means[term].value, value, rtol=1e-4, err_msg=term)
    assert_trees_close(found, gradient, 1e-4)
    of_vae = jax.tree.leaves(gradient["vae"] if name == "decoder" else gradient["encoder"])
    assert (max(abs(array).max() for array in of_vae) == 0) == (name == "decoder")


@pytest.mark.slow
def test_the_gradient_of_pixels_passes_through_the_codebook_and_decoding_codes_gives_the_same_image():
    params = params_of(VAE)

    @jax.jit
    def both(params):
        output = VAE.apply({"params": params}, BATCH["images"])
        again = VAE.apply({"params": params}, output.codes, method="decode_codes")
        return (
            output,
            again,
            jax.grad(lambda params: VAE.apply({"params": params}, BATCH["images"]).pixels.sum())(params),
        )

    output, again, gradient = jax.device_get(both(params))
    assert output.codes.shape == (8, 4) and len(np.unique(output.codes)) > 3
    np.testing.assert_allclose(output.pixels, again, atol=1e-5)
    assert abs(gradient["to_code"]["kernel"]).max() > 1e-3 and abs(gradient["codebook"]["table"]).max() == 0
    np.testing.assert_allclose(output.quantized.usage.sum(-1), 1, rtol=1e-5)


@pytest.mark.slow
def test_decoding_step_by_step_gives_the_logits_of_a_call():
    params = params_of(DALLE)

    @jax.jit
    def both(params):
        variables = {"params": params}
        whole = DALLE.apply(variables, BATCH["images"], BATCH["tokens"], BATCH["segments"])
        cache = DALLE.new_image_cache(BATCH["segments"])
        logits, cache = DALLE.apply(variables, BATCH["tokens"], cache, method="begin")
        steps = [logits]
        for number in range(1, 4):
            codes = whole.codes[:, number - 1]
            logits, cache = DALLE.apply(variables, codes, np.int32(number), cache, method="advance")
            steps.append(logits)
        without = DALLE.apply(variables, BATCH["images"], BATCH["tokens"], np.zeros_like(BATCH["segments"]))
        return whole.logits, jax.numpy.stack(steps, 1), without.logits

    whole, steps, without = jax.device_get(both(params))
    np.testing.assert_allclose(steps, whole, atol=1e-4)
    assert abs(whole - without).max() > 1e-2  # The codes depend on the text.


def test_code_usage_is_counted():
    metric, counts = CodeUsage(), np.array([4.0, 0.0, 4.0, 0.0])
    state = metric.merge(*(metric.update({"code_counts": Mean(part, 8.0)}) for part in (counts, counts * 2)))
    assert metric.compute(state) == {"unused_codes": 0.5, "code_perplexity": pytest.approx(2.0)}
    assert metric.update({}) is None


@pytest.mark.slow
def test_a_dalle_learns_colors_after_its_autoencoder(tmp_path, monkeypatch, capsys):
    source = colored(tmp_path / "images")
    vae = jf.fit(experiment_of(VAE, source), tmp_path / "vae", quiet=True)
    values = vae.evaluate()
    assert values["pixel_error"] < 0.05 and {"unused_codes", "code_perplexity", "usage"} <= values.keys()
    run = jf.fit(experiment_of(DALLE, source, init=str(vae.folder)), tmp_path / "run", quiet=True)
    kept = jax.device_get((vae.params["codebook"]["table"], run.params["vae"]["codebook"]["table"]))
    np.testing.assert_array_equal(*kept)
    assert run.evaluate()["accuracy"] > 0.9
    answers = run.with_decoding(temperature=0.1).predict(["red", "green"])
    for answer, name in zip(answers, COLORS, strict=True):
        assert answer.images.shape == (3, 8, 8, 3)
        assert abs(answer.images.mean((0, 1, 2)) - COLORS[name]).max() < 60, answer.images.mean((0, 1, 2))

    clip = small_run(SOFTMAX, tmp_path)
    monkeypatch.setattr(run_commands, "opened", lambda name, **_: clip if name == "CLIP" else run)
    page = tmp_path / "page.html"
    arguments = ["predict", "RUN", "red", "green", "--rank-by", "CLIP"]
    assert cli.main([*arguments, "--keep", "2", "--out", str(page)]) == 0
    assert page.read_text().count("<img") == 4 and 'title="red (' in page.read_text()
    assert cli.main([*arguments, "--json"]) == 0
    scores = [float(number) for number in re.findall(r"-?\d\.\d+", capsys.readouterr().out)]
    assert len(scores) == 6 and scores[:3] == sorted(scores[:3], reverse=True)
    assert cli.main(["predict", "RUN", "red", "--keep", "2"]) == 2
    assert "--keep 2: needs a run that ranks images; set --rank-by" in capsys.readouterr().err
    assert cli.main(["predict", "RUN", "red", "--rank-by", "RUN"]) == 2
    assert "ImageTokens ranks no images; expected a run of a Clip" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("objective", "model", "task", "line"),
    [
        (ImageTokens(), VAE, TEXTS, "objective=ImageTokens: needs a Dalle; the model is a DiscreteVae"),
        (ImageTokens(), DALLE, TASK, "the task's rows have no seeds; use ImagesFromText"),
        (
            ImageTokens(),
            dataclasses.replace(DALLE, vae=dataclasses.replace(VAE, image=16)),
            TEXTS,
            "data.task.image.size=8 differs from model.vae.image=16",
        ),
        (DiscreteAutoencoding(), small_bert(), IMAGES, "needs a DiscreteVae; the model is a Bert"),
    ],
)
def test_what_does_not_fit_is_refused(objective, model, task, line):
    with pytest.raises(InputError, match=re.escape(line)):
        objective.check(model, task.row)


def test_settings_that_make_no_sense():
    with pytest.raises(InputError, match=re.escape("objective.decoding.num_beams=4: codes are sampled; expected 1")):
        ImageTokens(decoding=jf.Decoding(num_beams=4))
    with pytest.raises(InputError, match=re.escape("model.codes=1: expected at least 2")):
        dataclasses.replace(VAE, codes=1)
    with pytest.raises(InputError, match=r"objective\.usage=-1\.0: expected at least 0"):
        DiscreteAutoencoding(usage=-1.0)
