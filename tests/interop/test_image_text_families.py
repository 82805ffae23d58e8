"""CLIP and SigLIP from folders that transformers wrote, and back."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn
from safetensors.numpy import load_file
from small_bert import applied

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.models import export_hf, import_hf, load
from jaxformer.interop.parity.certificate import certify

SIZES = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = {**SIZES, "vocab_size": 41, "max_position_embeddings": 9}
VISION = {**SIZES, "hidden_size": 18, "image_size": 12, "patch_size": 4}
CLIP = {"text": {"eos_token_id": 40}, "projection_dim": 10}
MODELS = {
    "CLIPModel": CLIP,
    "CLIPModel of an old config": {**CLIP, "text": {"eos_token_id": 2}},
    "CLIPModel of other activations": {**CLIP, "text": {"eos_token_id": 40, "hidden_act": "gelu"}},
    "SiglipModel": {"text": {"pad_token_id": 1, "projection_size": 18}},
}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 12, 12, 3)).astype(np.float32)
LENGTHS = np.array([9, 5, 3])
MASK = (np.arange(9) < LENGTHS[:, None]).astype(np.int32)
TOKENS = np.where(MASK, RNG.integers(3, 40, (3, 9)), 0).astype(np.int32)
TOKENS[np.arange(3), LENGTHS - 1] = 40


def theirs(name):
    """A model of transformers with random weights."""
    name, fields = name.split()[0], MODELS[name]
    kind = name.removesuffix("Model")
    others = {key: value for key, value in fields.items() if key != "text"}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**TEXT, **fields["text"]}, vision_config=dict(VISION), **others
    )
    return redrawn(getattr(transformers, name)(config), seed=1)


def run_theirs(model):
    """Scores and vectors of their model for the images and the texts."""
    pixels = torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())
    padding = model.config.text_config.pad_token_id or 0
    tokens = torch.from_numpy(np.where(MASK, TOKENS, padding)).long()
    masked = {"attention_mask": torch.from_numpy(MASK)} if model.config.model_type == "clip" else {}
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=pixels, **masked)
    names = {"logits_per_image": "logits", "image_embeds": "image_vectors", "text_embeds": "text_vectors"}
    return {ours: output[name].numpy() for name, ours in names.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_transformers_and_tensors_survive_the_round_trip(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path / "theirs")
    imported = load(open_folder(tmp_path / "theirs"))
    expected = run_theirs(model)
    ours = imported.model
    actual = jax.jit(lambda params: ours.apply({"params": params}, IMAGES, TOKENS, MASK))(imported.params)
    for what, array in expected.items():
        np.testing.assert_allclose(getattr(actual, what), array, atol=1e-4, rtol=1e-5, err_msg=what)
    assert np.ptp(expected["logits"]) > 0.01
    alone = applied(ours, imported.params, tokens=TOKENS, segments=MASK)
    np.testing.assert_allclose(alone.text_vectors, expected["text_vectors"], atol=1e-4)
    assert alone.logits is None and alone.image_vectors is None
    export_hf(ours, imported.params, None, tmp_path / "ours")
    again, told = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    for what, array in run_theirs(again.eval()).items():
        np.testing.assert_allclose(array, expected[what], atol=1e-5, err_msg=what)
    before, after = (load_file(tmp_path / home / "model.safetensors") for home in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == array.tobytes() for key, array in after.items())
    assert not differences(import_hf(tmp_path / "ours")[0], ours)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["CLIPModel", "SiglipModel"])
def test_the_certificate_compares_images_and_texts(name, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    model, params = import_hf(tmp_path)
    certificate = certify(model, params, None, tmp_path)
    assert certificate.passed
    assert {"logits", "image vectors", "text vectors", "gradients"} <= {line.what for line in certificate.lines}


@pytest.mark.parametrize(
    ("name", "part", "change", "line"),
    [
        ("SiglipModel", "vision_config", {"vision_use_head": False}, "vision_use_head=False is not supported"),
        ("SiglipModel", "text_config", {"projection_size": 7}, "projection_size=7 is not supported; expected 18"),
        ("CLIPModel", "text_config", {"hidden_act": "mish"}, "hidden_act='mish' is not supported"),
        ("CLIPModel", "vision_config", {"patch_size": 5}, "model.image=12 is not a multiple of model.patch=5"),
        ("CLIPModel", "text_config", {"alibi": True}, "text_config: unsupported fields for this model family: alibi"),
    ],
)
def test_a_config_that_cannot_be_honoured(name, part, change, line, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config[part] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=re.escape(line)):
        import_hf(tmp_path)
