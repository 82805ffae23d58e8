"""`predict` and transformers give the same answers to raw inputs, until the exported folder is edited."""

import dataclasses
import json
import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from hf_models import redrawn
from small_bert import noisy_params
from test_certificate import BERT, BERT_ALONE, GPT2, MODELS, PICTURES, TEXTS

from jaxformer.config import Experiment
from jaxformer.data.fields.image import ImageField
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.pictures import ImageFolders
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.causal_lm import NextToken
from jaxformer.data.tasks.classification import Classify
from jaxformer.data.tasks.images import ImageTask, LabelledImages
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tasks.question_answering import AnswerSpans
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tasks.tagging import TagTokens
from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface.models import export_hf
from jaxformer.interop.huggingface.runs import export_run
from jaxformer.interop.parity.compare import JaxModel
from jaxformer.interop.parity.end_to_end import compare_answers
from jaxformer.layers.residual import ResidualBranch
from jaxformer.models.classifier import Classifier
from jaxformer.models.vit import Vit
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.regression import Regression
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.objectives.tagging import Tagging
from jaxformer.parallel.sharding import Mesh, make_mesh
from jaxformer.runs.run import Run
from jaxformer.training.optimizers import AdamW, Schedule

del redrawn  # Importing its module keeps transformers quiet.

NAMES = ("a", "b", "c")
WRITING = Decoding(max_new_tokens=12)
SPAN_LABELS = ("start", "end")
SPANS = dataclasses.replace(BERT_ALONE, prediction_heads=())


def pairs(kind="single_label", labels=NAMES, **fields):
    return Classify(pair="other", labels=labels, kind=kind, length=64, **fields)


RUNS = {
    "filled masks": ("word_piece", BERT, MaskedLM(), MaskedSentencePairs(64)),
    "labels": ("word_piece", Classifier(BERT_ALONE, NAMES), Classification(), pairs()),
    "many labels": ("word_piece", Classifier(BERT_ALONE, NAMES), Classification(many=True), pairs("multi_label")),
    "numbers": ("word_piece", Classifier(BERT_ALONE, ("n",)), Regression(), pairs("regression", ("n",))),
    "labels by a decoder": (
        "byte_level",
        Classifier(GPT2, NAMES, "last", bias=False),
        Classification(),
        Classify(labels=NAMES, length=64, form="decoder"),
    ),
    "tags": ("word_piece", Classifier(SPANS, NAMES, "none"), Tagging(), TagTokens(NAMES, 64)),
    "spans": ("word_piece", Classifier(SPANS, SPAN_LABELS, "none"), QuestionAnswering(), AnswerSpans(64, 16, 16)),
    "continuations": ("byte_level", GPT2, CausalLM(decoding=WRITING), NextToken(64)),
    "translations": (
        "sentence_piece",
        MODELS["marian"][0],
        Seq2SeqLM(decoding=dataclasses.replace(WRITING, num_beams=3)),
        TextToText(64, 64),
    ),
    "vectors": (
        "word_piece",
        dataclasses.replace(BERT, prediction_heads=()),
        SentenceEmbedding(),
        MaskedSentencePairs(64),
    ),
    "masks of bytes": ("byte_level", BERT, MaskedLM(), MaskedSentencePairs(64)),
    "tags of bytes": ("byte_level", Classifier(SPANS, NAMES, "none"), Tagging(), TagTokens(NAMES, 64)),
    "spans or none": (
        "word_piece",
        Classifier(SPANS, SPAN_LABELS, "none"),
        QuestionAnswering(no_answer=-1000.0),
        AnswerSpans(64, 16, 16),
    ),
    "a question that is cut": (
        "word_piece",
        Classifier(dataclasses.replace(SPANS, max_length=24), SPAN_LABELS, "none"),
        QuestionAnswering(),
        AnswerSpans(24, 8, 6),
    ),
    "continuations up to the positions": (
        "byte_level",
        dataclasses.replace(GPT2, max_length=24),
        CausalLM(decoding=Decoding(min_new_tokens=60)),
        NextToken(24),
    ),
    "translations of a length": (
        "sentence_piece",
        MODELS["marian"][0],
        Seq2SeqLM(decoding=Decoding(max_new_tokens=None, max_length=9)),
        TextToText(64, 64),
    ),
    "vectors of a few tokens": (
        "word_piece",
        dataclasses.replace(BERT, prediction_heads=()),
        SentenceEmbedding(longest=5),
        MaskedSentencePairs(64),
    ),
    "labels of pictures": (
        None,
        Vit(PICTURES, NAMES, image=8, patch=4),
        ImageClassification(),
        LabelledImages(ImageField(8), labels=NAMES),
    ),
    "labels of grey pictures": (
        None,
        Vit(PICTURES, NAMES, image=8, patch=4, channels=1),
        ImageClassification(),
        LabelledImages(ImageField(8, 1), labels=NAMES),
    ),
    "vectors of pictures": (
        None,
        Vit(dataclasses.replace(PICTURES, residual=ResidualBranch(0.5)), image=8, patch=4),
        ImageEmbedding(),
        ImageTask(ImageField(8)),
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    home = tmp_path_factory.mktemp("tokenizers")
    recipes = {
        "word_piece": WordPiece(300),
        "byte_level": ByteLevelBpe(300),
        "sentence_piece": SentencePiece(300, "bpe"),
    }
    return {name: recipe.build(lambda: TEXTS, str(home / name)) for name, recipe in recipes.items()}


def run_of(name: str, tokenizers, runs=RUNS) -> Run:
    """A run with parameters drawn at random."""
    tokenizer, model, objective, task = runs[name]
    inputs = [np.zeros(spec.shape, spec.dtype) for spec in model.abstract_inputs().values()]
    source = ImageFolders("") if tokenizer is None else TextFiles(())
    recipe = None if tokenizer is None else WordPiece(300)
    data = Data(source, task, batch=8)
    experiment = Experiment(model, objective, data, recipe, AdamW(Schedule(1e-5)), steps=1)
    params = noisy_params(model, *inputs)
    return Run(Path("run"), experiment, tokenizers.get(tokenizer), 0, params, make_mesh(Mesh(1), jax.devices()[:1]))


def exported(name, tokenizers, out, runs=RUNS):
    """A run, and its exported folder."""
    run = run_of(name, tokenizers, runs)
    export_run(run, out, certificate=False)
    return run, out


def lines_of(run, folder):
    return list(compare_answers(run, JaxModel(run.model, run.params, "float32"), folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_an_export_answers_as_the_run_does(name, tokenizers, tmp_path):
    lines = lines_of(*exported(name, tokenizers, tmp_path / "out"))
    assert lines and all(line.passed for line in lines), lines
    assert all(re.match(r"[1-9]", line.where) for line in lines), lines


def test_loading_a_class_that_leaves_tensors_out_reports_nothing(tokenizers, tmp_path, caplog, monkeypatch):
    # BERT for pretraining has a pooler and a head that a pipeline for masks does not use.
    run, folder = exported("filled masks", tokenizers, tmp_path / "out")
    logger = logging.getLogger("transformers")
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logging.WARNING)
    assert all(line.passed for line in lines_of(run, folder))
    assert not caplog.text and logger.level == logging.WARNING


def test_masks_that_keep_the_space_before_them_are_compared_without_it(tokenizers, tmp_path):
    run, folder = exported("masks of bytes", tokenizers, tmp_path / "out")
    file = folder / "tokenizer.json"
    saved = json.loads(file.read_text())
    for token in saved["added_tokens"]:
        token["lstrip"] = False
    file.write_text(json.dumps(saved))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"mask_token": "[MASK]"}))
    (line,) = lines_of(run, folder)
    assert line.passed and line.where == "2 texts, theirs without the space before a mask"


def test_ids_that_the_tokenizer_lacks_are_left_out_of_both_sides(tokenizers, tmp_path):
    tokenizer, model, objective, task = RUNS["filled masks"]
    larger = {"filled masks": (tokenizer, dataclasses.replace(model, vocab=600), objective, task)}
    run = run_of("filled masks", tokenizers, larger)
    export_hf(run.model, run.params, run.tokenizer, tmp_path / "out")  # With all ids, as an import leaves again.
    [line] = lines_of(run, tmp_path / "out")
    assert line.passed, line


@pytest.mark.parametrize("name", ["filled masks", "vectors", "continuations", "translations"])
def test_nothing_is_said_of_a_model_whose_positions_no_input_fits(name, tokenizers, tmp_path):
    tokenizer, model, objective, task = RUNS[name]
    shorter = RUNS | {name: (tokenizer, dataclasses.replace(model, max_length=8), objective, task)}
    run, folder = exported(name, tokenizers, tmp_path / "out", shorter)
    assert lines_of(run, folder) == []


def edit(file, **fields):
    """An edit of a folder's JSON file; a field that is None is removed."""

    def apply(folder):
        path = folder / file
        content = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return apply


def without_end_token(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["post_processor"] = None
    path.write_text(json.dumps(content))


EDITS = {
    "the layout of texts": ("labels", without_end_token),
    "the kind of problem": ("many labels", edit("config.json", problem_type="single_label_classification")),
    "a function on numbers": ("numbers", edit("config.json", problem_type="multi_label_classification")),
    "a setting of generation": ("continuations", edit("generation_config.json", no_repeat_ngram_size=1)),
    "the scale of pixels": ("labels of pictures", edit("preprocessor_config.json", rescale_factor=1.0)),
    "a crop that is left out": ("labels of pictures", edit("preprocessor_config.json", do_center_crop=False, size=8)),
}


@pytest.mark.parametrize("fault", EDITS)
def test_an_edited_folder_fails(fault, tokenizers, tmp_path):
    name, apply = EDITS[fault]
    run, folder = exported(name, tokenizers, tmp_path / "out")
    apply(folder)
    assert not all(line.passed for line in lines_of(run, folder))
