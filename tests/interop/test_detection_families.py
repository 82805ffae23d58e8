"""DETR and YOLOS from folders that transformers wrote, and back."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn
from safetensors.numpy import load_file, save_file
from small_detr import DETR, TASK, WITH_RESNET, YOLOS, noisy, scenes

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_build import build
from jaxformer.interop.export.onnx_programs import programs
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.detr import LAYOUTS, random_targets, table
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.images import read_preparation, write_preprocessor
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, import_hf, load
from jaxformer.interop.parity.certificate import certify
from jaxformer.losses.set_prediction import Costs, set_losses
from jaxformer.objectives.object_detection import ObjectDetection

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}
NAMES = {"id2label": {0: "cat", 1: "dog", 2: "owl"}, "label2id": {"cat": 0, "dog": 1, "owl": 2}}


def detr(**fields):
    """DETR with a small ResNet, whose statistics are random too."""
    resnet = {"embedding_size": 4, "hidden_sizes": [8, 16], "depths": [2, 1], "out_features": ["stage2"], **fields}
    stacks = {
        f"{part}_{name}": size
        for part in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 12))
    }
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        backbone_config=transformers.ResNetConfig(**resnet),
        d_model=16,
        num_queries=5,
        **stacks,
        **NAMES,
    )
    model = redrawn(transformers.DetrForObjectDetection(config), seed=1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.abs_().add_(0.5)
    return model


def yolos(**fields):
    sizes = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.YolosConfig(
        image_size=[12, 16],
        patch_size=4,
        num_detection_tokens=5,
        use_mid_position_embeddings=False,
        **sizes,
        **NAMES,
        **fields,
    )
    return redrawn(transformers.YolosForObjectDetection(config), seed=1)


MODELS = {"bottleneck": detr, "basic": lambda: detr(layer_type="basic"), "yolos": yolos}


def inputs(name, height=40, width=56):
    """Random images, which are padded for DETR."""
    rng = np.random.default_rng(0)
    if name == "yolos":
        return {"images": rng.normal(size=(3, 16, 24, 3)).astype(np.float32)}
    mask = np.zeros((3, height, width), np.int32)
    mask[0], mask[1, :20, :40], mask[2, :, :17] = 1, 1, 1
    images = rng.normal(size=(3, height, width, 3)) * mask[..., None]
    return {"images": images.astype(np.float32), "pixel_mask": mask}


def arguments(arrays):
    names = {"images": "pixel_values", "pixel_mask": "pixel_mask"}
    return {
        names[name]: torch.from_numpy(
            array.transpose(0, 3, 1, 2).copy() if name == "images" else array.astype(np.int64)
        )
        for name, array in arrays.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_loss_are_those_of_transformers_and_tensors_survive_the_round_trip(name, tmp_path):
    model, arrays = MODELS[name](), inputs(name)
    model.save_pretrained(tmp_path / "theirs")
    imported = load(open_folder(tmp_path / "theirs"))
    targets = random_targets(3, 3)
    there = [
        (boxes, labels, weights > 0)
        for boxes, labels, weights in zip(*map(np.array, (targets.boxes, targets.labels, targets.weights)), strict=True)
    ]
    labels = [
        {"class_labels": torch.from_numpy(labels[some]).long(), "boxes": torch.from_numpy(boxes[some])}
        for boxes, labels, some in there
    ]
    with torch.no_grad():
        expected = model(**arguments(arrays), labels=labels)

    @jax.jit
    def compute(params):
        output = imported.model.apply({"params": params}, **arrays)
        return output, set_losses(output.logits, output.boxes, targets, Costs(), 0.1)

    actual, losses = compute(imported.params)
    np.testing.assert_allclose(actual.logits, expected.logits, **TOLERANCE)
    np.testing.assert_allclose(actual.boxes, expected.pred_boxes, **TOLERANCE)
    np.testing.assert_allclose(actual.hidden, expected.last_hidden_state, **TOLERANCE)
    for ours, theirs in (("class_loss", "loss_ce"), ("l1_loss", "loss_bbox"), ("giou_loss", "loss_giou")):
        np.testing.assert_allclose(losses[ours].value, expected.loss_dict[theirs], rtol=1e-5, err_msg=ours)
    export_hf(imported.model, imported.params, None, tmp_path / "ours", ExportPlan(origin=imported.origin))
    before, after = (load_file(tmp_path / home / "model.safetensors") for home in ("theirs", "ours"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == array.tobytes() for key, array in after.items())
    assert not differences(import_hf(tmp_path / "ours")[0], imported.model)


@pytest.mark.slow
@pytest.mark.parametrize("model", [WITH_RESNET, YOLOS], ids=["detr", "yolos"])
def test_models_are_exported_certified_and_read_again(model, tmp_path):
    model = dataclasses.replace(model, mean=(0.3,) * 3, std=(0.2,) * 3)
    params = noisy(model)
    export_hf(model, params, None, tmp_path / "out")
    certificate = certify(model, params, None, tmp_path / "out")
    assert certificate.passed and {line.what for line in certificate.lines} >= {"logits", "boxes", "loss", "gradients"}
    again, _ = import_hf(tmp_path / "out")
    assert not differences(again, model) and again.mean == model.mean


def test_old_files_with_a_backbone_of_timm_are_read(tmp_path):
    """facebook/detr-resnet-50 has such names, and a config that names its backbone."""
    renamed = {}
    theirs = {row.ours: row.theirs for row in table(LAYOUTS[1])}
    for row in table(LAYOUTS[0]):
        renamed[row.theirs.format(l=0)] = theirs[row.ours].format(l=0)
    assert renamed["model.backbone.conv_encoder.model.encoder.stages.1.layers.0.layer.2.normalization.running_var"] == (
        "model.backbone.conv_encoder.model.layer2.0.bn3.running_var"
    )
    model = detr()
    model.save_pretrained(tmp_path / "new")
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    (tmp_path / "old").mkdir()
    old = {renamed.get(name, name): tensor for name, tensor in tensors.items()}
    old["model.backbone.conv_encoder.model.layer1.0.bn1.num_batches_tracked"] = np.zeros((), np.int64)
    save_file(old, tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    one, two = (load(open_folder(tmp_path / name)) for name in ("new", "old"))
    for left, right in zip(jax.tree.leaves(one.params), jax.tree.leaves(two.params), strict=True):
        np.testing.assert_array_equal(left, right)


WRONG = {
    "auxiliary_loss=True is not supported": {"auxiliary_loss": True},
    "position_embedding_type='learned' is not supported": {"position_embedding_type": "learned"},
    "use_mid_position_embeddings=True is not supported": {"use_mid_position_embeddings": True},
}


@pytest.mark.parametrize("problem", WRONG)
def test_settings_that_are_not_supported_are_refused(problem, tmp_path):
    model = YOLOS if "mid" in problem else WITH_RESNET
    export_hf(model, noisy(model), None, tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | WRONG[problem]))
    with pytest.raises(InputError, match=problem):
        import_hf(tmp_path / "out")


def test_image_processors_keep_the_sizes_of_padded_images(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "detr"}')
    field = dataclasses.replace(TASK.image, size=64, shortest=40, resample="bilinear")
    write_preprocessor(tmp_path, WITH_RESNET, field)
    said = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert said["size"] == {"shortest_edge": 40, "longest_edge": 64} and said["pad_size"] == {"height": 64, "width": 64}
    preparation = read_preparation(tmp_path, WITH_RESNET)
    assert dataclasses.replace(field, **preparation.field) == field
    said["pad_size"] = {"height": 32, "width": 64}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    with pytest.raises(InputError, match=r"pad_size=.*expected equal height and width of at least 64"):
        read_preparation(tmp_path, WITH_RESNET)


@pytest.mark.slow
@pytest.mark.parametrize("model", [WITH_RESNET, DETR, YOLOS], ids=["resnet", "patches", "yolos"])
def test_onnx_programs_compute_the_same(model):
    onnx_ir, onnxruntime = pytest.importorskip("onnx_ir"), pytest.importorskip("onnxruntime")
    params, batch = noisy(model), scenes(2)
    run = types.SimpleNamespace(model=model, objective=ObjectDetection())
    program = programs(run)["model"]
    built = build(program.function, parameters.flat(params), program.arguments, program.limits)
    session = onnxruntime.InferenceSession(onnx_ir.to_proto(built).SerializeToString())
    taken = {name: batch[name].astype(np.float32) / 100 for name in model.inputs() if name == "images"}
    if "pixel_mask" in model.inputs():
        taken["pixel_mask"] = batch["pixel_mask"].astype(np.int32)
    given = {name: tensor.numpy() for name, tensor in arguments(taken).items()}
    found = dict(zip([output.name for output in session.get_outputs()], session.run(None, given), strict=True))
    expected = jax.jit(lambda params: model.apply({"params": params}, **taken))(params)
    np.testing.assert_allclose(found["logits"], expected.logits, **TOLERANCE)
    np.testing.assert_allclose(found["pred_boxes"], expected.boxes, **TOLERANCE)
