"""DiT from folders of diffusers, and back; compared with diffusers where it is installed."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from small_bert import assert_trees_identical, noisy_params
from small_dalle import VAE
from small_dit import LABELS, OF_CLASSES, OF_TEXTS

import jaxformer as jf
from jaxformer import cli, run_commands
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.diffusion_transformers import read_dit, write_dit
from jaxformer.layers.adaptive import AdaLayerNorm
from jaxformer.models.dit import Dit
from jaxformer.parallel import sharding

STACK = dataclasses.replace(OF_CLASSES.transformer, norm=AdaLayerNorm(mlp_epsilon=1e-3))
MODEL = Dit(STACK, tuple(map(str, range(5))), image=16, patch=2, channels=4, out_channels=8)
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 4)).astype(np.float32)
TIMES, CLASSES = np.array([1, 421, 999]), np.array([0, 5, 3])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder that we wrote, and its parameters."""
    folder = tmp_path_factory.mktemp("dit") / "ours"
    # Large parameters magnify the rounding of sines of angles of hundreds of turns.
    params = jax.tree.map(lambda array: array / 2, noisy_params(MODEL, IMAGES))
    write_dit(MODEL, params, folder)
    return folder, params


def test_a_folder_comes_back_as_it_was(written):
    folder, params = written
    model, found = read_dit(folder)
    assert model == dataclasses.replace(MODEL, transformer=dataclasses.replace(STACK, dtype="auto"))
    assert_trees_identical(found, params)


def test_outputs_and_gradients_are_those_of_diffusers(written):
    pytest.importorskip("diffusers", reason="needs diffusers: pip install 'jaxformer[diffusers]'")
    import torch
    from diffusers import DiTTransformer2DModel

    folder, params = written
    network = DiTTransformer2DModel.from_pretrained(folder).eval()
    pixels = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()).requires_grad_()
    expected = network(pixels, torch.from_numpy(TIMES), torch.from_numpy(CLASSES)).sample
    (slope,) = torch.autograd.grad(expected.square().mean(), pixels)

    def loss(images, params):
        output = MODEL.apply({"params": params}, images, TIMES.astype(np.float32), CLASSES)
        return (output.velocity**2).mean(), output.velocity

    (_, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(IMAGES, params)
    scale = float(expected.detach().abs().max())
    np.testing.assert_allclose(found / scale, expected.detach().numpy().transpose(0, 2, 3, 1) / scale, atol=1e-5)
    slope = slope.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient / abs(slope).max(), slope / abs(slope).max(), atol=1e-5)


def test_a_run_is_exported_by_the_command(tmp_path, monkeypatch, capsys):
    def run_of(model, task):
        data = jf.data.Data(jf.data.TextFiles(()), task, 8)
        experiment = jf.Experiment(model, objective, data, None, jf.optimizers.AdamW(), steps=1, mesh=jf.Mesh(1))
        return jf.Run(tmp_path / "run", experiment, None, 0, params, sharding.make_mesh(jf.Mesh(1)))

    params, objective = noisy_params(OF_CLASSES, IMAGES[:, :8, :8, :3]), jf.objectives.FlowMatching()
    run = run_of(OF_CLASSES, jf.data.ImagesFromLabels(jf.data.ImageField(8), labels=LABELS))
    monkeypatch.setattr(run_commands, "opened", lambda *_, **__: run)
    assert cli.main(["export", "RUN", str(tmp_path / "out"), "--format", "diffusers"]) == 0
    line = "it predicts the velocity, for times from 0 to 1000 and pixels (x / 255 - 0.5) / 0.5"
    assert line in capsys.readouterr().out
    model, found = read_dit(tmp_path / "out")
    assert model.labels == ("0", "1", "2")
    assert_trees_identical(found, params)
    params, objective = {}, jf.objectives.DiscreteAutoencoding()
    run = run_of(VAE, jf.data.ImageTask(jf.data.ImageField(8)))
    assert cli.main(["export", "RUN", str(tmp_path / "other"), "--format", "diffusers"]) == 2
    assert "diffusers has no class for a DiscreteVae; expected a Dit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"norm_type": "layer_norm"}, "norm_type='layer_norm' is not supported; expected 'ada_norm_zero'"),
        (
            {"_class_name": "UNet2DModel"},
            "_class_name='UNet2DModel' is not supported; expected 'DiTTransformer2DModel'",
        ),
        ({"sample_size": 15}, "model.image=15 is not a multiple of model.patch=2"),
        ({"num_layers": 3}, "tensors missing: transformer_blocks.2."),
        ({"caption_channels": 7}, "unsupported fields for this model family: caption_channels=7"),
    ],
)
def test_a_config_that_cannot_be_honoured(written, change, line, tmp_path):
    for file in written[0].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=re.escape(line)):
        read_dit(tmp_path)


def test_models_that_diffusers_does_not_have(tmp_path):
    with pytest.raises(InputError, match="DiTTransformer2DModel has classes; expected a model with labels"):
        write_dit(OF_TEXTS, {}, tmp_path / "out")
    other = dataclasses.replace(MODEL, transformer=dataclasses.replace(STACK, norm=AdaLayerNorm(1e-3)))
    with pytest.raises(InputError, match=r"cannot represent this model: model\.transformer\.norm\.epsilon"):
        write_dit(other, {}, tmp_path / "out")
    with pytest.raises(InputError, match=re.escape("has no config.json; expected a folder of diffusers")):
        read_dit(tmp_path)
