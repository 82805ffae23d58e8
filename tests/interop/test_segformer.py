"""SegFormer from folders that transformers wrote, and back."""

import json
import re

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn
from safetensors.numpy import load_file

from jaxformer.errors import InputError
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.families.segformer import FAMILY
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, import_hf, load
from jaxformer.interop.huggingface.runs import export_run, from_pretrained
from jaxformer.interop.huggingface.table import tensor_mappings
from jaxformer.interop.parity.compare import TorchModel, largest_difference
from jaxformer.objectives.semantic_segmentation import SemanticSegmentation

TOLERANCE = 1e-5
FIELDS = {
    "hidden_sizes": [8, 12, 16, 20],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 2, 4],
    "mlp_ratios": [2, 2, 2, 2],
    "sr_ratios": [4, 2, 2, 1],
    "decoder_hidden_size": 12,
    "image_size": 64,
    "id2label": {0: "sky", 1: "road", 2: "tree"},
    "label2id": {"sky": 0, "road": 1, "tree": 2},
}


def theirs():
    """A model of transformers with random weights and statistics."""
    model = redrawn(transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**FIELDS)), seed=1)
    batch_norm = model.decode_head.batch_norm
    batch_norm.running_mean.uniform_(-1, 1)
    batch_norm.running_var.uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("segformer") / "theirs"
    torch.manual_seed(0)
    theirs().save_pretrained(home)
    preparation = {"size": {"height": 64, "width": 64}, "do_reduce_labels": True}
    (home / "preprocessor_config.json").write_text(json.dumps(preparation))
    return home


@pytest.mark.slow
def test_outputs_loss_and_gradients_are_transformers_and_tensors_survive_the_round_trip(folder, tmp_path):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    mask = rng.choice([0, 1, 2, 255], (2, 64, 64))
    opened = open_folder(folder)
    imported = load(opened)
    batch = {"images": images, "mask": mask.astype(np.uint8), "weights": np.ones((2, 1), np.float32)}
    objective = SemanticSegmentation()

    def loss_of(params):
        logits = objective.apply_model(imported.model, params, batch, None).logits
        return objective(imported.model, params, batch)["loss"].value, logits

    (loss, logits), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(imported.params)
    network = transformers.SegformerForSemanticSegmentation.from_pretrained(folder).eval()
    output = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), labels=torch.from_numpy(mask))
    output.loss.backward()
    expected = output.logits.detach().numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(logits, expected, atol=TOLERANCE, rtol=TOLERANCE)
    np.testing.assert_allclose(loss, output.loss.item(), rtol=TOLERANCE)
    ours = parameters.flat(gradients)
    shapes = {path: array.shape for path, array in ours.items()}
    name = "SegformerForSemanticSegmentation"
    mapping = TorchModel(opened, lambda names: tensor_mappings(FAMILY.table.layout(names), shapes), name, "float32")
    expected = {name: tensor.grad.numpy() for name, tensor in network.named_parameters() if tensor.grad is not None}
    named = mapping.named(ours)
    assert expected.keys() <= named.keys() and all("running" in key for key in named.keys() - expected.keys())
    # The gradient of a bias of keys is 0: what is left of it are rounding errors.
    named = {name: array for name, array in named.items() if "k_proj.bias" not in name}
    difference, tensor = largest_difference(named, expected)
    assert difference < 3 * TOLERANCE, tensor

    export_hf(imported.model, imported.params, None, tmp_path / "ours", ExportPlan(origin=imported.origin))
    before, after = (load_file(home / "model.safetensors") for home in (folder, tmp_path / "ours"))
    assert {key for key in before if "num_batches" not in key} == after.keys()
    assert all(before[key].tobytes() == array.tobytes() for key, array in after.items())
    assert not differences(import_hf(tmp_path / "ours")[0], imported.model)


@pytest.mark.slow
def test_a_run_segments_pictures_and_is_exported_with_a_certificate(folder, tmp_path):
    run = from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 256, (70, 150, 3), np.uint8)
    answer = run.predict(picture)
    assert answer.mask.shape == (70, 150) and set(dict(answer.labels)) <= {"sky", "road", "tree"}
    answer.save(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 1000
    assert "comparisons with transformers" in export_run(run, tmp_path / "ours")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"strides": [4, 2, 2, 1]}, "strides=[4, 2, 2, 1] is not supported; expected [4, 2, 2, 2]"),
        ({"depths": [1, 2]}, "depths=[1, 2] is not supported; expected four whole numbers above 0"),
        ({"image_size": 48}, "model.image=48 is not a multiple of model.patch=32"),
    ],
)
def test_a_config_that_cannot_be_honoured(change, line, tmp_path):
    theirs().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=re.escape(line)):
        import_hf(tmp_path)
