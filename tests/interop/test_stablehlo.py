"""A StableHLO program computes what the model does, in a process that has no jaxformer."""

import dataclasses
import re
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest
from small_bert import applied, noisy_params
from small_vit import AUTOENCODER, IMAGES, SCALED, VIT, noisy
from small_writer import GPT, PIECES, STACK, small_run, small_tokenizer

import jaxformer as jf
from jaxformer import cli, run_commands
from jaxformer.errors import InputError
from jaxformer.interop.export.stablehlo_program import PROGRAM, WEIGHTS, arguments, forward_pass
from jaxformer.interop.huggingface import parameters
from jaxformer.layers.attention import Attention
from jaxformer.layers.positions import Rotary
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.t5 import T5, t5_stack

ALONE = "import sys; sys.modules['jaxformer'] = sys.modules['flax'] = None\n"
"""Code that makes importing them an error."""
SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "head_dim": 8}
BERT = Bert(STACK, vocab=len(PIECES), max_length=32)
LLAMA = dataclasses.replace(STACK, attention=Attention(kv_heads=1), position_embedding=Rotary(), norm_position="before")
MODELS = {
    "bert": BERT,
    "encoder": dataclasses.replace(BERT, prediction_heads=(), token_types=0),
    "llama": dataclasses.replace(GPT, transformer=LLAMA, max_length=600, tie_embeddings=False),
    "t5": T5(t5_stack(**SIZES), t5_stack(**SIZES, bidirectional=False), vocab=len(PIECES), max_length=32),
    "classifier": Classifier(BERT, ("yes", "no", "perhaps")),
}
OUTPUTS = {
    "bert": {"hidden", "logits", "pooled", "next_sentence_logits"},
    "encoder": {"hidden"},
    "llama": {"hidden", "logits"},
    "t5": {"hidden", "logits"},
    "classifier": {"logits"},
}
RNG = np.random.default_rng(0)


def arrays_for(model, **lengths):
    """Arrays of two rows, the first of them half padding."""
    arrays = []
    for name, spec in arguments(model).items():
        shape = (2, lengths[spec.axes[1]])
        array = RNG.integers(1, 3 if "types" in name else len(PIECES), shape) - ("types" in name)
        if "segments" in name:
            array = np.ones(shape)
            array[0, shape[1] // 2 :] = 0
        arrays.append(array.astype(np.int32))
    return arrays


def assert_same(outputs, model, tree, arrays):
    """Our own code computes the same outputs."""
    output = applied(model, tree, **dict(zip(arguments(model), arrays, strict=True)))
    for name, array in outputs.items():
        np.testing.assert_allclose(array, getattr(output, name), atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_program_takes_any_rows_of_any_length(name):
    model = MODELS[name]
    tree = noisy_params(model, *[np.zeros((1, 4), np.int32)] * (2 if name == "t5" else 1))
    params = parameters.flat(jax.tree.map(np.asarray, tree))
    exported = jax.export.deserialize(forward_pass(model, params, "float32").serialize())
    assert set(exported.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    # Above 512 tokens, attention would go block by block.
    for arrays in (arrays_for(model, s=5, t=7), arrays_for(model, s=3, t=600 if name == "llama" else 32)):
        outputs = exported.call(params, *arrays)
        assert outputs.keys() == OUTPUTS[name]
        assert_same(outputs, model, tree, arrays)


def test_longer_rows_than_the_model_takes_are_refused():
    params = parameters.flat(noisy_params(BERT, np.zeros((1, 4), np.int32)))
    exported = forward_pass(BERT, params, "float32")
    with pytest.raises(ValueError, match="t <= 32"):
        exported.call(params, *arrays_for(BERT, t=33))


@pytest.mark.slow
@pytest.mark.parametrize("model", [VIT, SCALED])
def test_a_program_takes_any_number_of_images(model):
    tree = noisy(model)
    exported = forward_pass(model, params := parameters.flat(jax.tree.map(np.asarray, tree)), "float32")
    for images in (IMAGES[:1], IMAGES):
        outputs = exported.call(params, images)
        assert outputs.keys() == {"hidden", "pooled", "logits"}
        assert_same(outputs, model, tree, [images])


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [AUTOENCODER.decoder, None])
def test_a_program_of_a_masked_autoencoder_takes_images_and_noise(decoder):
    model = dataclasses.replace(AUTOENCODER, decoder=decoder)
    tree, noise = noisy(model), RNG.random((len(IMAGES), model.patches), np.float32)
    exported = forward_pass(model, params := parameters.flat(jax.tree.map(np.asarray, tree)), "float32")
    for count in (1, len(IMAGES)):
        arrays = [IMAGES[:count], noise[:count]]
        outputs = exported.call(params, *arrays)
        assert outputs.keys() == {"hidden", "masked"} | ({"pixels"} if decoder else set())
        assert_same(outputs, model, tree, arrays)


def test_an_unknown_model_is_an_error():
    with pytest.raises(InputError, match="model=Transformer: expected a model of text or of images for --format stab"):
        arguments(STACK)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_its_readme_runs_without_jaxformer(dtype, tmp_path, monkeypatch, capsys):
    run = small_run(small_tokenizer(tmp_path))
    monkeypatch.setattr(run_commands, "opened", lambda *given, **named: run)
    command = ["export", "nowhere", str(tmp_path / "out"), "--format", "stablehlo", "--dtype", dtype]
    assert cli.main(command) == 0
    assert "how to run it with jax" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", PROGRAM, WEIGHTS, "tokenizer"}
    page = (tmp_path / "out" / "README.md").read_text()
    assert "up to 32 tokens" in page and f"`logits` [b, t, {len(PIECES)}]" in page
    found = run_readme(tmp_path / "out")
    tree = jax.tree.map(lambda array: array.astype(dtype).astype("float32"), run.params)
    assert found["logits"].shape == (2, 8, len(PIECES))
    assert_same(found, run.model, tree, [np.ones((2, 8), np.int32)] * 2)
    assert cli.main(command) == 2
    assert "already exists" in capsys.readouterr().err


@pytest.mark.slow
def test_the_readme_of_an_image_model_runs_without_jaxformer(tmp_path):
    text = small_run(small_tokenizer(tmp_path))
    experiment = dataclasses.replace(text.experiment, model=VIT)
    run = dataclasses.replace(text, experiment=experiment, params=noisy(VIT), tokenizer=None)
    jf.export_stablehlo(run, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", PROGRAM, WEIGHTS}
    page = (tmp_path / "out" / "README.md").read_text()
    assert "| `images` | uint8 [b, 12, 12, 1] |" in page and "accepts any number of images (b)." in page
    found = run_readme(tmp_path / "out")
    assert found["logits"].shape == (2, 3)
    assert_same(found, VIT, run.params, [np.ones((2, 12, 12, 1), np.uint8)])


def run_readme(folder):
    """The outputs of the program in a README, run in a process without jaxformer."""
    page = (folder / "README.md").read_text()
    script = ALONE + re.search(r"```python\n(.*?)```", page, re.DOTALL)[1] + "np.savez('found.npz', **outputs)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = dict(np.load(folder / "found.npz"))
    for name, array in found.items():
        assert f"'{name}': {array.shape}" in done.stdout
    return found


@pytest.mark.slow
def test_a_number_beyond_float16_is_refused(tmp_path):
    run = small_run(small_tokenizer(tmp_path))
    params = jax.tree.map(lambda array: array * 1e6, run.params)
    with pytest.raises(InputError, match=r"--dtype float16: .* beyond 65,504"):
        jf.export_stablehlo(dataclasses.replace(run, params=params), tmp_path / "out", "float16")
    assert not (tmp_path / "out").exists()
