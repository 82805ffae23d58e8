"""A classifier's folder has its problem type: transformers' pipeline predicts what `predict` does, for every kind."""

import dataclasses
import json

import numpy as np
import pytest
import transformers
from hf_models import POSITIONS, VOCAB, redrawn
from safetensors.numpy import load_file, save_file
from small_bert import noisy_params
from small_classifier import review_experiment, small_backbone, write_reviews

import jaxformer as jf
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.models import load
from jaxformer.interop.huggingface.runs import export_run
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.question_answering import LABELS as SPAN
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.tagging import Tagging
from jaxformer.parallel import sharding
from jaxformer.runs.run import Run

TEXTS = ["the film is great", "a dull plot but fine", "it"]
NAMES = ("sad", "so-so", "glad")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder)
    return folder


@pytest.fixture
def exported(home, tmp_path):
    """Exports a classifier; its run and the folder."""

    def make(labels, objective, pooling="pooler"):
        backbone = (
            small_backbone() if pooling == "pooler" else dataclasses.replace(small_backbone(), prediction_heads=())
        )
        model = Classifier(backbone, labels, pooling=pooling)
        base = review_experiment(home)
        tokenizer = base.tokenizer.build(None, str(tmp_path / "tokenizer"))
        params = noisy_params(model, np.zeros((1, 4), np.int32))
        kind = "multi_label" if len(labels) == 1 else "single_label"
        kind = "regression" if isinstance(objective, Regression) else kind
        task = AnswerSpans(16, 2, 4) if labels == SPAN else Classify(labels=labels, kind=kind, length=12)
        data = dataclasses.replace(base.data, task=task)
        experiment = dataclasses.replace(base, model=model, objective=objective, data=data)
        run = Run(tmp_path / "nowhere", experiment, tokenizer, 1, params, sharding.make_mesh(sharding.Mesh(1)))
        export_run(run, tmp_path / "out", certificate=False)
        return run, tmp_path / "out"

    return make


def change(folder, **fields):
    path = folder / "config.json"
    said = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in said.items() if value is not ...}))


def shown(answer):
    """Labels and scores of what `predict` gives."""
    return dict(answer.labels) if hasattr(answer, "labels") else {answer.name: answer.value}


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels, objective, problem_type",
    [
        (NAMES, Classification(), "single_label_classification"),
        (NAMES, Classification(many=True), "multi_label_classification"),
        (("glad",), Classification(many=True), "multi_label_classification"),
        (("stars",), Regression(), "regression"),
    ],
    ids=["one", "many", "many of one", "number"],
)
def test_the_pipeline_shows_what_we_do(exported, labels, objective, problem_type):
    run, out = exported(labels, objective)
    assert json.loads((out / "config.json").read_text())["problem_type"] == problem_type
    pipeline = transformers.pipeline("text-classification", model=str(out), top_k=None)
    again = jf.from_pretrained(out)
    assert again.objective == objective
    for text, theirs in zip(TEXTS, pipeline(TEXTS), strict=True):
        expected = {one["label"]: one["score"] for one in theirs}
        assert expected == pytest.approx(shown(run.predict(text)), abs=1e-5)
        assert expected == pytest.approx(shown(again.predict(text)), abs=1e-5)


def test_classes_of_tokens_have_no_problem_type(exported):
    _, out = exported(NAMES, Tagging(), pooling="none")
    assert "problem_type" not in json.loads((out / "config.json").read_text())
    assert jf.from_pretrained(out).objective == Tagging()


@pytest.mark.parametrize(
    "labels, problem_type, objective",
    [(NAMES, ..., Classification()), (("stars",), ..., Regression()), (NAMES, None, Classification())],
)
def test_without_a_problem_type_the_labels_decide(exported, labels, problem_type, objective):
    _, out = exported(labels, Classification(many=True))
    change(out, problem_type=problem_type)
    assert jf.from_pretrained(out).objective == objective


@pytest.mark.parametrize(
    "labels, problem_type, words",
    [
        (NAMES, "multi_label", "'multi_label': expected one of single_label_classification, multi_label_"),
        (NAMES, "regression", "'regression' with 3 labels is not supported; expected one label"),
        (("stars",), "single_label_classification", "with 1 labels is not supported; expected several labels"),
    ],
)
def test_problem_types_that_are_not_here_are_named(exported, labels, problem_type, words):
    _, out = exported(labels, Classification(many=True))
    change(out, problem_type=problem_type)
    with pytest.raises(InputError, match=f"config.json: problem_type=.*{words}"):
        jf.from_pretrained(out)


@pytest.mark.parametrize(
    "problem_type, words", [("multi_label_classification", "of images"), ("regression", "with 2 labels")]
)
def test_images_have_one_label(problem_type, words, tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, problem_type=problem_type)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    with pytest.raises(InputError, match=f"problem_type='{problem_type}' {words} is not supported"):
        jf.from_pretrained(tmp_path / "vit")


@pytest.mark.parametrize("count", [5, 1, 2])
def test_num_labels_beside_other_names_counts_as_in_transformers(count, tmp_path):
    sizes = {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.BertConfig(vocab_size=VOCAB, max_position_embeddings=POSITIONS, num_labels=count, **sizes)
    theirs = redrawn(transformers.BertForSequenceClassification(config), seed=1)
    theirs.save_pretrained(tmp_path / "out")
    change(tmp_path / "out", num_labels=count, id2label={"0": "no", "1": "yes"}, label2id={"no": 0, "yes": 1})
    again = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "out")
    assert again.classifier.weight.shape[0] == count
    imported = load(open_folder(tmp_path / "out"))
    assert imported.model.labels == tuple(again.config.id2label[number] for number in range(count))
    assert bool(imported.notes) == (count != 2)
    if count != 2:
        assert f"num_labels={count} differs from the 2 names of id2label" in imported.notes[0]


@pytest.mark.parametrize("max_length", [16, 40, 67, 128])
def test_what_answers_questions_comes_back_whatever_its_length(exported, max_length, tmp_path):
    _, out = exported(SPAN, QuestionAnswering(), pooling="none")
    if max_length != 16:
        change(out, max_position_embeddings=max_length)
        tensors = load_file(out / "model.safetensors")
        name = "bert.embeddings.position_embeddings.weight"
        tensors[name] = np.resize(tensors[name], (max_length, tensors[name].shape[1]))
        save_file(tensors, out / "model.safetensors")
    run = jf.from_pretrained(out)
    assert run.objective == QuestionAnswering() and run.experiment.data.task.length == max_length
    assert run.predict("the film\ta dull plot but it is fine").text is not None
