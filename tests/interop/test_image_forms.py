"""Encoders of images with fixed positions, and classifiers of the patches' mean, are exported and compute the same."""

import dataclasses

import jax
import numpy as np
import pytest
import transformers
from small_bert import applied
from small_vit import IMAGES, VIT, noisy

from jaxformer.config import Checkpoint, Experiment
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.data.tasks.images import ImageTask, LabelledImages
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.conventions import to_exportable_form
from jaxformer.interop.huggingface.image_forms import image_form
from jaxformer.interop.huggingface.runs import export_run, from_pretrained
from jaxformer.layers.residual import ResidualBranch
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.optimizers import AdamW, Schedule
from jaxformer.parallel.sharding import Mesh, make_mesh
from jaxformer.runs.run import Run, open_run
from jaxformer.runs.writing import write_experiment
from jaxformer.training.checkpoints import Checkpoints

FIXED = {"position_embedding": "sinusoidal"}
DROPPING = dataclasses.replace(VIT.transformer, residual=ResidualBranch(drop_path=0.1))
MODELS = {
    "fixed positions": (dataclasses.replace(VIT, **FIXED), "ViTForImageClassification"),
    "the patches' mean": (dataclasses.replace(VIT, pooling="mean"), "Dinov2ForImageClassification"),
    "both": (
        dataclasses.replace(VIT, pooling="mean", transformer=DROPPING, registers=2, **FIXED),
        "Dinov2WithRegistersForImageClassification",
    ),
    "layer scale": (
        dataclasses.replace(
            VIT, pooling="mean", transformer=dataclasses.replace(DROPPING, residual=ResidualBranch(0.3)), **FIXED
        ),
        "Dinov2ForImageClassification",
    ),
    "no labels": (dataclasses.replace(VIT, labels=(), **FIXED), "ViTModel"),
}


def run_of(model, folder):
    """A run on disk, with parameters drawn at random."""
    names = model.labels
    task = LabelledImages(ImageField(12, 1), labels=names) if names else ImageTask(ImageField(12, 1))
    objective = ImageClassification() if names else ImageEmbedding()
    experiment = Experiment(model, objective, Data(ImageFolders(""), task, 8), None, AdamW(Schedule(1e-5)), steps=1)
    run = Run(folder, experiment, None, 0, noisy(model), make_mesh(Mesh(1), jax.devices()[:1]))
    folder.mkdir()
    with Checkpoints(folder / "checkpoints", Checkpoint()) as checkpoints:
        checkpoints.save(0, {"params": run.params}, None)
        checkpoints.wait()
    write_experiment(folder, experiment)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(("model", "architecture"), MODELS.values(), ids=MODELS)
def test_the_export_computes_what_the_run_does(model, architecture, tmp_path):
    run = run_of(model, tmp_path / "run")
    said = export_run(tmp_path / "run", tmp_path / "out")
    assert "no parity certificate" not in said, said
    assert transformers.AutoConfig.from_pretrained(tmp_path / "out").architectures == [architecture]
    back = from_pretrained(tmp_path / "out")
    expected, actual = (applied(one.model, one.params, IMAGES) for one in (run, back))
    np.testing.assert_allclose(actual.hidden, expected.hidden, atol=1e-5)
    if model.labels:
        np.testing.assert_allclose(actual.logits, expected.logits, atol=1e-5)


def test_what_transformers_computes_already_stays_as_it_is(tmp_path):
    run = run_of(VIT, tmp_path / "run")
    assert image_form(VIT) is VIT and to_exportable_form(run) is run
    assert to_exportable_form(open_run(tmp_path / "run")).model == VIT


def test_a_mean_without_a_class_token_is_refused(tmp_path):
    run_of(dataclasses.replace(VIT, pooling="mean", class_token=False), tmp_path / "run")
    with pytest.raises(InputError, match="no family of transformers represents"):
        export_run(tmp_path / "run", tmp_path / "out")
