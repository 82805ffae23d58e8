"""VideoMAE and ViViT from folders that transformers wrote, and back."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn
from safetensors.numpy import load_file
from small_video import VIDEO_AUTOENCODER, noisy

from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families import ARCHITECTURES, bridge_of
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, import_hf, load
from jaxformer.interop.huggingface.runs import export_run, from_pretrained
from jaxformer.interop.huggingface.table import tensor_mappings
from jaxformer.interop.parity.certificate import certify
from jaxformer.interop.parity.compare import TorchModel, largest_difference
from jaxformer.layers.tubelets import tube_mask
from jaxformer.objectives.video_classification import VideoClassification
from jaxformer.objectives.video_masked_autoencoding import VideoMaskedAutoencoding

TOLERANCE = 1e-5
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
SHAPE = {"image_size": 12, "num_frames": 4}
NAMES = {"id2label": {0: "runs", 1: "jumps", 2: "sits"}, "label2id": {"runs": 0, "jumps": 1, "sits": 2}}
PATCHES = {"patch_size": 4, "tubelet_size": 2}
DECODER = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
DECODER = {f"decoder_{name}": size for name, size in DECODER.items()}
MODELS = {
    "pretraining": ("VideoMAEForPreTraining", {**PATCHES, **DECODER}),
    "pretraining with a last norm": (
        "VideoMAEForPreTraining",
        {**PATCHES, **DECODER, "use_mean_pooling": False, "norm_pix_loss": False},
    ),
    "classification": ("VideoMAEForVideoClassification", {**PATCHES, **NAMES}),
    "classification of the first tubelet": (
        "VideoMAEForVideoClassification",
        {**PATCHES, **NAMES, "use_mean_pooling": False},
    ),
    "vivit": ("VivitForVideoClassification", {"tubelet_size": [2, 4, 4], **NAMES}),
}
NOISE = np.random.default_rng(2).random((2, 9)).astype(np.float32)
CLIPS = np.random.default_rng(0).normal(size=(2, 4, 12, 12, 3)).astype(np.float32)
LABELS = np.array([2, 0])


def theirs(name):
    """A model of transformers with random weights."""
    kind, fields = MODELS[name]
    config = getattr(transformers, re.sub("For.*", "Config", kind))
    return redrawn(getattr(transformers, kind)(config(**SIZES, **SHAPE, **fields)), seed=1)


def batch_of(name, model):
    """A batch for our objective, and the same as arguments of the class of transformers."""
    arrays = {"clips": CLIPS}
    if "pretraining" in name:
        objective = VideoMaskedAutoencoding(normalised="norm" not in name)
        arrays |= {"noise": NOISE, "weights": np.ones((2, 1), np.float32)}
        inputs = {"bool_masked_pos": torch.from_numpy(tube_mask(NOISE, model.visible, model.times))}
    else:
        objective = VideoClassification()
        labels, weights = np.stack([LABELS, LABELS], 1), np.tile(np.float32([1, 0]), (2, 1))
        arrays |= {"labels": labels, "weights": weights}
        inputs = {"labels": torch.from_numpy(LABELS)}
    return objective, arrays, {"pixel_values": torch.from_numpy(CLIPS.transpose(0, 1, 4, 2, 3).copy()), **inputs}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_loss_and_gradients_are_transformers_and_tensors_survive_the_round_trip(name, tmp_path):
    network = theirs(name)
    network.save_pretrained(tmp_path / "theirs")
    folder = open_folder(tmp_path / "theirs")
    imported = load(folder)
    model, (objective, batch, inputs) = imported.model, batch_of(name, imported.model)

    def loss_of(params):
        output = objective.apply_model(model, params, batch, None)
        return objective(model, params, batch)["loss"].value, bridge_of(model).outputs(model, output)["logits"]

    (loss, logits), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(imported.params)
    output = network(**inputs)
    output.loss.backward()
    np.testing.assert_allclose(logits, output.logits.detach().numpy(), atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(loss, output.loss.item(), rtol=TOLERANCE)
    ours, table = parameters.flat(gradients), ARCHITECTURES[MODELS[name][0]].table
    shapes = {path: array.shape for path, array in ours.items()}
    mapping = TorchModel(folder, lambda names: tensor_mappings(table.layout(names), shapes), MODELS[name][0], "float32")
    expected = {name: tensor.grad.numpy() for name, tensor in network.named_parameters() if tensor.grad is not None}
    assert mapping.named(ours).keys() == expected.keys()
    # The gradient of a bias of keys is 0: what is left of it are rounding errors.
    named = {name: array for name, array in mapping.named(ours).items() if "k_proj.bias" not in name}
    difference, tensor = largest_difference(named, expected)
    assert difference < TOLERANCE, tensor

    export_hf(model, imported.params, None, tmp_path / "ours", ExportPlan(origin=imported.origin))
    before, after = (load_file(tmp_path / home / "model.safetensors") for home in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == array.tobytes() for key, array in after.items())
    _, told = type(network).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["unexpected_keys"] and not told["missing_keys"]
    assert not differences(import_hf(tmp_path / "ours")[0], model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "preparation"),
    [
        ("classification", {"size": {"shortest_edge": 16}, "crop_size": {"height": 12, "width": 12}}),
        ("vivit", {"size": {"shortest_edge": 14}, "crop_size": 12, "rescale_factor": 1 / 127.5}),
    ],
)
def test_a_run_prepares_clips_as_the_folder_says_and_is_exported_with_a_certificate(name, preparation, tmp_path):
    theirs(name).save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "preprocessor_config.json").write_text(json.dumps(preparation))
    run = from_pretrained(tmp_path / "theirs")
    assert run.model.labels == ("runs", "jumps", "sits")
    assert run.experiment.data.task.clip.frame.edge == preparation["size"]["shortest_edge"]
    np.testing.assert_allclose(run.model.mean, 1.5 / 2 if name == "vivit" else 0.5)
    assert "comparisons with transformers" in export_run(run, tmp_path / "ours")
    lines = json.loads((tmp_path / "ours" / "parity.json").read_text())["lines"]
    assert [line for line in lines if line["what"] == "labels" and "2 clips" in line["where"]]
    classify = transformers.pipeline("video-classification", str(tmp_path / "ours"), top_k=3)
    assert type(classify.image_processor).__name__.startswith("VideoMAE" if name == "classification" else "Vivit")


@pytest.mark.slow
def test_a_masked_autoencoder_of_grey_clips_is_exported_certified_and_read_again(tmp_path):
    params = noisy(VIDEO_AUTOENCODER)
    export_hf(VIDEO_AUTOENCODER, params, None, tmp_path / "out")
    assert certify(VIDEO_AUTOENCODER, params, None, tmp_path / "out").passed
    assert not differences(import_hf(tmp_path / "out")[0], VIDEO_AUTOENCODER)


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("classification", {"qv_bias": False}, "qv_bias=False is not supported; expected True"),
        ("classification", {"num_frames": 5}, "model.frames=5 is not a multiple of model.tubelet=2; 4 would be"),
        ("vivit", {"tubelet_size": [2, 4, 6]}, "tubelet_size=[2, 4, 6] is not supported; expected a number of frames,"),
    ],
)
def test_a_config_that_cannot_be_honoured(name, change, line, tmp_path):
    theirs(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=re.escape(line)):
        import_hf(tmp_path)
