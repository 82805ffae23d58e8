"""ViT, DINOv2 and the masked autoencoder from folders that transformers wrote, and back."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn
from safetensors.numpy import load_file, save_file
from small_vit import AUTOENCODER, noisy

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.families.vit_mae import positions
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, import_hf, load
from jaxformer.interop.parity.certificate import certify
from jaxformer.models.vit import Vit
from jaxformer.objectives.masked_autoencoding import MaskedAutoencoding

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 12, "patch_size": 4}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}
DECODER = {f"decoder_{name}": size for name, size in {**SIZES, "hidden_size": 8, "num_attention_heads": 2}.items()}
DECODER = {name: size for name, size in DECODER.items() if "_size" not in name or "hidden" in name}
MODELS = {
    "ViTForImageClassification": {"intermediate_size": 20, "hidden_act": "gelu_new", **NAMES},
    "ViTModel": {"intermediate_size": 20, "num_channels": 1},
    "Dinov2Model": {"mlp_ratio": 3},
    "Dinov2ForImageClassification": {"use_swiglu_ffn": True, **NAMES},
    "Dinov2WithRegistersModel": {"num_register_tokens": 2},
    "ViTMAEForPreTraining": {"intermediate_size": 20, "decoder_intermediate_size": 16, "mask_ratio": 0.6, **DECODER},
    "ViTMAEModel": {"intermediate_size": 20},
}
NOISE = np.random.default_rng(2).random((2, 9)).astype(np.float32)


def theirs(name, **fields):
    """A model of transformers with random weights; a masked autoencoder with the positions that it should have."""
    config = getattr(transformers, re.sub("(For.*|Model)$", "Config", name))
    model = redrawn(getattr(transformers, name)(config(**(SIZES | MODELS[name] | fields))), seed=1)
    for place, parameter in model.named_parameters():
        if "MAE" in name and "pos" in place:
            parameter.data = torch.from_numpy(positions(tuple(parameter.shape)).astype(np.float32))
    return model


def images(model, height=12, width=12):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, height, width, model.config.num_channels)).astype(np.float32)


def run(model, images, **inputs):
    """The outputs of transformers' model for images [b, height, width, n], by our names."""
    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        output = model(pixels, **inputs)
    names = {"logits": "logits", "last_hidden_state": "hidden", "pooler_output": "pooled", "mask": "masked"}
    if output.get("ids_restore") is not None:
        names["logits"] = "pixels"
    return {ours: output[name].numpy() for name, ours in names.items() if output.get(name) is not None}


def run_ours(model, params, *inputs):
    return jax.device_get(jax.jit(lambda params: model.apply({"params": params}, *inputs))(params))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_transformers_and_tensors_survive_the_round_trip(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    imported = load(open_folder(tmp_path / "theirs"))
    x, noise = images(model), (NOISE,) if "MAE" in name else ()
    expected = run(model, x, **({"noise": torch.from_numpy(NOISE)} if noise else {}))
    actual = run_ours(imported.model, imported.params, x, *noise)
    assert len(expected) >= 1
    for what, array in expected.items():
        np.testing.assert_allclose(getattr(actual, what), array, **TOLERANCE, err_msg=what)
    export_hf(imported.model, imported.params, None, tmp_path / "ours", ExportPlan(origin=imported.origin))
    again, told = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["unexpected_keys"] and not [key for key in told["missing_keys"] if "mask_token" not in key]
    for what, array in run(again.eval(), x, **({"noise": torch.from_numpy(NOISE)} if noise else {})).items():
        np.testing.assert_allclose(array, expected[what], atol=1e-6, err_msg=what)
    before, after = (load_file(tmp_path / home / "model.safetensors") for home in ("theirs", "ours"))
    before = {key.replace("decoder_encoder.layer", "decoder_layers"): value for key, value in before.items()}
    assert {key for key in before if "mask_token" not in key or "MAE" in name} == after.keys()
    assert all(before[key].tobytes() == array.tobytes() for key, array in after.items())
    assert not differences(import_hf(tmp_path / "ours")[0], imported.model)


@pytest.mark.slow
@pytest.mark.parametrize("decoder", [AUTOENCODER.decoder, None])
def test_a_masked_autoencoder_of_grey_images_is_exported_certified_and_read_again(decoder, tmp_path):
    model = dataclasses.replace(AUTOENCODER, decoder=decoder, mean=(0.3,), std=(0.2,))
    params = noisy(model)
    export_hf(model, params, None, tmp_path / "out")
    assert certify(model, params, None, tmp_path / "out").passed
    again, _ = import_hf(tmp_path / "out")
    assert not differences(again, model) and again.mean == (0.3,) and again.std == (0.2,)


@pytest.mark.slow
def test_the_masked_autoencoders_loss_equals_transformers_for_plain_and_normalised_pixels(tmp_path):
    for normalised in (False, True):
        model = theirs("ViTMAEForPreTraining", norm_pix_loss=normalised)
        model.save_pretrained(tmp_path / str(normalised))
        ours, params = import_hf(tmp_path / str(normalised))
        with torch.no_grad():
            pixels = torch.from_numpy(images(model).transpose(0, 3, 1, 2).copy())
            expected = model(pixels, noise=torch.from_numpy(NOISE)).loss
        batch = {"images": images(model), "noise": NOISE, "weights": np.ones((2, 1), np.float32)}
        loss = MaskedAutoencoding(normalised)(ours, params, batch)["loss"].value
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["ViTForImageClassification", "Dinov2Model"])
def test_positions_for_another_resolution_are_interpolated_as_in_transformers(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    ours, params = import_hf(tmp_path / "theirs")
    x = images(model, 20, 16)
    option = {"interpolate_pos_encoding": True} if name.startswith("ViT") else {}
    actual = run_ours(ours, params, x)
    for what, array in run(model, x, **option).items():
        np.testing.assert_allclose(getattr(actual, what), array, **TOLERANCE, err_msg=what)


def test_names_of_labels_and_the_preparation_of_images_travel(tmp_path):
    theirs("ViTForImageClassification").save_pretrained(tmp_path / "theirs")
    preparation = {"size": 12, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(preparation))
    model, params = import_hf(tmp_path / "theirs")
    assert model.labels == ("cat", "dog", "owl") and model.mean == (0.4, 0.5, 0.6) and model.std == (0.1, 0.2, 0.3)
    export_hf(model, params, None, tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert config["id2label"] == {"0": "cat", "1": "dog", "2": "owl"}
    assert not (tmp_path / "ours" / "generation_config.json").exists()
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "ours")
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    pixels = np.asarray(processor(picture, input_data_format="channels_last")["pixel_values"][0])
    bytes_, floats = (run_ours(model, params, x[None]).logits for x in (picture, pixels.transpose(1, 2, 0)))
    np.testing.assert_allclose(bytes_, floats, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"qkv_bias": False}, "qkv_bias=False is not supported; expected True"),
        ({"image_size": [12, 16]}, "image_size=[12, 16] is not supported; expected a whole number above 0"),
        ({"image_size": 13}, "model.image=13 is not a multiple of model.patch=4; 12 would be"),
        ({"id2label": {"0": "cat", "2": "dog"}}, "expected a name for each of the numbers 0, 1, 2, ..."),
        ({"id2label": {"0": "cat"}}, "model.labels=('cat',): expected at least two names, or none"),
        ({"pooler_act": "relu"}, "pooler_act='relu' is not supported; expected 'tanh'"),
    ],
)
def test_a_config_that_cannot_be_honoured(change, line, tmp_path):
    theirs("ViTForImageClassification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=re.escape(line)):
        import_hf(tmp_path)


def test_positions_that_are_not_the_sinusoids_are_refused(tmp_path):
    theirs("ViTMAEModel").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["embeddings.position_embeddings"][0, 3, 0] += 0.1
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="position_embeddings differs from the values that this model computes"):
        import_hf(tmp_path)


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (Vit(position_embedding="sinusoidal"), "model.position_embedding: .sinusoidal. here, .learned. in vit"),
        (dataclasses.replace(Vit(labels=("a", "b")), pooling="mean"), "model.pooling: .mean. here, .first. in vit"),
    ],
)
def test_what_no_family_computes_is_refused(model, line, tmp_path):
    with pytest.raises(InputError, match=line):
        export_hf(model, {}, None, tmp_path / "out")
