"""A ViT from folders of images to a run, its answers, a Hugging Face folder and back."""

import dataclasses
import json

import numpy as np
import pytest
import tiny
import tiny_images
import transformers
from PIL import Image
from small_vit import VIT

import jaxformer as jf
from jaxformer import cli
from jaxformer.config import Checkpoint, Evaluation, Experiment, Log
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.tasks.images import LabelledImages
from jaxformer.data.tokenizers import WordPiece
from jaxformer.data.transforms.image import Augmentation
from jaxformer.errors import InputError
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.optimizers import AdamW, Schedule


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """A ViT that distinguishes light pictures from dark ones."""
    sources = tiny_images.sources(tmp_path_factory.mktemp("data"))
    task = LabelledImages(
        ImageField(size=12, channels=1, augmentation=Augmentation(scale=(0.5, 1.0)), crop=0.9),
        labels=tiny_images.LABELS,
    )
    return Experiment(
        model=dataclasses.replace(VIT, labels=tiny_images.LABELS, std=(0.25,)),
        objective=ImageClassification(),
        data=Data(sources["data.train"], task, 8, sources["data.validation"]),
        tokenizer=None,
        optimizer=AdamW(Schedule(1e-2, warmup=2, decay="constant")),
        steps=12,
        mesh=Mesh(1),
        evaluation=Evaluation(every=12),
        checkpoint=Checkpoint(every=6, best="accuracy"),
        log=Log(every=6),
    )


@pytest.fixture(scope="module")
def run(experiment, tmp_path_factory):
    return jf.fit(experiment, tmp_path_factory.mktemp("runs") / "vit", quiet=True)


@pytest.mark.slow
def test_it_learns_and_reports_its_speed_in_images(run):
    assert run.evaluate()["accuracy"] == 1.0 and run.tokenizer is None
    assert not (run.folder / "tokenizer").exists()
    assert tiny.metrics(run.folder)[-1]["images_per_second"] > 0
    lines = run.demonstrate()
    assert len(lines) == 6 and all("light" in line or "dark" in line for line in lines)


@pytest.mark.slow
def test_it_resumes_bit_for_bit(run, experiment, tmp_path):
    jf.fit(dataclasses.replace(experiment, steps=6), tmp_path / "run", quiet=True)
    jf.fit(experiment, tmp_path / "run", quiet=True)
    tiny.assert_equal(tiny.saved(tmp_path / "run"), tiny.saved(run.folder))


def test_it_names_pictures_in_files(run, experiment, capsys):
    paths = [example["image"] for example in experiment.data.validation.open()]
    assert cli.main(["predict", str(run.folder), paths[0], paths[-1]]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == paths[0] and lines[1].endswith("  dark") and lines[4].endswith("  light")
    assert cli.main(["predict", str(run.folder), "none.png"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("jaxformer: none.png: cannot be decoded: ") and error.count("\n") == 1


def test_it_leaves_for_transformers_and_comes_back(run, experiment, tmp_path):
    jf.export_run(run, tmp_path / "hf", certificate=False)
    model = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hf")
    assert model.config.id2label == {0: "dark", 1: "light"}
    preparation = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert preparation["size"] == {"shortest_edge": 13} and preparation["image_std"] == [0.25]
    assert "AutoImageProcessor" in (tmp_path / "hf" / "README.md").read_text()
    jf.import_run(tmp_path / "hf", tmp_path / "back", certificate=False)
    back = jf.open_run(tmp_path / "back")
    assert back.model.labels == tiny_images.LABELS and back.model.std == (0.25,)
    paths = [example["image"] for example in experiment.data.validation.open()]
    for one, other in zip(run.predict(paths), back.predict(paths), strict=True):
        np.testing.assert_allclose([share for _, share in one.labels], [share for _, share in other.labels], atol=0.05)


def test_an_encoder_without_labels_gives_vectors(run, tmp_path):
    bare = dataclasses.replace(run.model, labels=())
    params = {name: value for name, value in run.params.items() if name != "head"}
    jf.export_hf(bare, params, None, tmp_path / "hf")
    back = jf.from_pretrained(tmp_path / "hf")
    Image.new("L", (12, 12), 200).save(tmp_path / "light.png")
    answer = back.predict(str(tmp_path / "light.png"))
    assert isinstance(back.objective, ImageEmbedding) and answer.vector.shape == (16,)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"tokenizer": WordPiece(60)}, "tokenizer=WordPiece: data.task=LabelledImages reads no text: expected None"),
        ({"model": VIT}, "data.task.labels="),
    ],
)
def test_invalid_combinations_are_refused_before_anything_starts(experiment, change, line):
    with pytest.raises(InputError) as caught:
        dataclasses.replace(experiment, **change)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)
