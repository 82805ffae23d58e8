"""First steps in an interpreter: names, help, the summary of a run, and predictions."""

import importlib
import inspect
import json
import pkgutil
import pydoc
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import small_classifier
import small_vit
import small_writer

import jaxformer as jf
from jaxformer import field_docs, fields
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.tasks.images import Prepared
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.classification import Classification
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.question_answering import QuestionAnswering
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.objectives.tagging import Tagging
from jaxformer.training.optimizers import AdamW


@pytest.fixture(scope="module")
def run(tiny_config, tmp_path_factory):
    return jf.fit(jf.load(tiny_config, steps=3), tmp_path_factory.mktemp("runs") / "run", quiet=True)


def test_dir_lists_the_public_names_and_all_can_be_imported():
    assert [name for name in dir(jf) if not name.startswith("__")] == sorted(jf.__all__)
    for name in jf.__all__:
        assert getattr(jf, name).__doc__


def test_help_describes_the_public_names():
    text = pydoc.render_doc(jf, renderer=pydoc.plaintext)
    assert "class Experiment" in text and re.search(r"open_run\(\s*folder", text) and "Opens a run" in text


@pytest.mark.parametrize("cls", [Data, Bert, AdamW, jf.Experiment, jf.Run], ids=lambda cls: cls.__name__)
def test_help_of_a_class_explains_each_field(cls):
    text = " ".join(pydoc.render_doc(cls, renderer=pydoc.plaintext).replace("|", " ").split())
    meanings = field_docs.field_docs(cls)
    assert meanings.keys() >= fields.hints(cls).keys()
    for name, meaning in meanings.items():
        assert f"{name}: {meaning}" in text


def test_fields_of_a_base_class_are_explained_too():
    assert inspect.getdoc(AdamW).startswith("Adam")
    assert "schedule" in field_docs.field_docs(AdamW)


def test_every_field_that_can_be_set_is_explained():
    for module in pkgutil.walk_packages(jf.__path__, "jaxformer."):
        if module.name.split(".")[1] in ("models", "objectives", "data", "layers", "optimizers", "config"):
            for cls in vars(importlib.import_module(module.name)).values():
                if isinstance(cls, type) and cls.__module__ == module.name and hasattr(cls, "__dataclass_fields__"):
                    assert isinstance(vars(cls)["__doc__"], field_docs.FieldDocs), cls


def test_importing_a_module_reads_no_source():
    code = """
import jaxformer.data.pipeline.loader, jaxformer.field_docs
print(jaxformer.field_docs._strings_after_fields.cache_info().currsize)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_fields_are_set_by_name_on_loading(tiny_config):
    experiment = jf.load(tiny_config, {"seed": 7, "model.transformer.depth": "1"}, steps=40)
    assert (experiment.steps, experiment.seed, experiment.model.transformer.depth) == (40, 7, 1)
    with pytest.raises(InputError, match="stepz: no such field; perhaps steps"):
        jf.load(tiny_config, stepz=40)


@pytest.mark.slow
def test_a_run_is_one_line_a_summary_and_a_card(run):
    size = sum(leaf.size for leaf in map(np.asarray, _leaves(run.params)))
    assert repr(run) == f"<Run {run.folder}: Bert, {size:,} parameters, step 3 of 3>"
    lines = run.summary().splitlines()
    parts = dict(line.split() for line in lines[2 : 2 + len(run.params)])
    assert {name: int(count.replace(",", "")) for name, count in parts.items()} == {
        name: sum(leaf.size for leaf in _leaves(part)) for name, part in run.params.items()
    }
    assert "objective: MaskedLM" in lines and "evaluation at step 3" in lines
    assert repr(run.summary()) == str(run.summary())
    card = run._repr_html_()
    assert card.startswith("<table>") and "MaskedLM" in card and "masked_lm_accuracy" in card


def _leaves(tree):
    return [leaf for part in tree.values() for leaf in (_leaves(part) if isinstance(part, dict) else [part])]


def test_the_history_is_what_the_run_wrote(run):
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line.pop("digest") for line in lines)
    assert run.history == lines and [line["step"] for line in run.history] == [1, 2, 3, 3]


@pytest.mark.slow
def test_encode_gives_what_the_model_takes_and_embed_the_mean_of_the_last_hidden_states(run):
    texts, tokenizer = ["the old dog ran", "the sea"], run.tokenizer
    rows = [[tokenizer.cls_id, *tokenizer.encode(text), tokenizer.sep_id] for text in texts]
    assert run.encode(texts[0])["tokens"].tolist() == rows[:1]
    arrays = run.encode(texts)
    assert [row[mask > 0].tolist() for row, mask in zip(*arrays.values(), strict=True)] == rows
    output = jax.jit(run.model.apply)({"params": run.params}, **arrays)
    assert output.pooled.shape == (2, 1, 16)
    means = [np.mean(hidden[: len(row)], 0) for hidden, row in zip(output.hidden, rows, strict=True)]
    vectors = run.embed(texts)
    np.testing.assert_allclose(vectors, means, atol=1e-5)
    np.testing.assert_allclose(run.embed(texts[1]), vectors[1], atol=1e-5)
    with pytest.raises(InputError, match="no texts to embed"):
        run.embed([])


GPT, BERT = small_writer.GPT, small_classifier.small_backbone()
TEXTS = ("w1 w2 w3", "w4")
PAIRS = ("fine film\tthe plot", "dull\tand poor but warm")
LAID_OUT = {
    "a GPT": (GPT, CausalLM(), TEXTS, {"tokens": [[5 + 1, 5 + 2, 5 + 3], [5 + 4, 0, 0]]}),
    "an encoder-decoder": (
        small_writer.ENCODER_DECODER,
        Seq2SeqLM(),
        TEXTS,
        {"inputs": [[6, 7, 8, 3], [9, 3, 0, 0]], "tokens": [[0], [0]]},
    ),
    "a classifier of pairs": (
        Classifier(BERT, ("bad", "good")),
        Classification(),
        [tuple(pair.split("\t")) for pair in PAIRS],
        {"token_types": [[0, 0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1]]},
    ),
    "a tagger": (
        Classifier(BERT, ("a", "b"), pooling="none"),
        Tagging(),
        ("fine film", "it"),
        {"segments": [[1, 1, 1, 1], [1, 1, 1, 0]]},
    ),
    "a reader": (
        Classifier(BERT, ("start", "end"), pooling="none"),
        QuestionAnswering(),
        PAIRS,
        {"segments": [[1, 1, 1, 1, 1, 1, 1, 0], [1] * 8]},
    ),
    "sentence embeddings": (BERT, SentenceEmbedding(longest=4), ("a fine warm film",), {"segments": [[1, 1, 1, 1]]}),
}


@pytest.mark.parametrize("model, objective, texts, expected", LAID_OUT.values(), ids=LAID_OUT)
def test_each_objective_lays_texts_out_for_its_model(model, objective, texts, expected, tmp_path):
    if "w1 w2 w3" in texts:
        tokenizer = small_writer.small_tokenizer(tmp_path)
    else:
        small_classifier.write_reviews(tmp_path)
        tokenizer = WordPiece(path=str(tmp_path / "vocab.txt")).build(None, str(tmp_path / "kept"))
    arrays = objective.predictor(model, None, tokenizer).encode(texts)
    assert {name: arrays[name].tolist() for name in expected} == expected
    output = jax.eval_shape(lambda: model.init_with_output(jax.random.key(0), **arrays)[0])
    assert output.features.shape[0] == len(texts)


@pytest.mark.parametrize("given", [3, None, ["a [MASK]", 3], [None]], ids=str)
def test_other_types_than_text_are_refused_in_a_line(given, run):
    for call in (run.predict, run.encode, run.embed):
        with pytest.raises(InputError, match=r"^(3|None): expected a text or an image, or several in a list$"):
            call(given)


def test_images_are_laid_out_too():
    images = [Prepared("a.png", small_vit.IMAGES[0]), Prepared("b.png", small_vit.IMAGES[1])]
    arrays = ImageClassification().predictor(small_vit.VIT, None, None).encode(images)
    output = jax.eval_shape(lambda: small_vit.VIT.init_with_output(jax.random.key(0), **arrays)[0])
    assert output.features.shape == (2, 16) and (arrays["images"] == small_vit.IMAGES[:2]).all()


def test_a_run_is_not_a_hugging_face_folder(run):
    with pytest.raises(InputError, match="a run of jaxformer, not a Hugging Face folder"):
        jf.from_pretrained(run.folder)


def test_names_of_weights_are_the_same_everywhere(tmp_path):
    for call in (jf.from_pretrained, jf.import_hf, lambda name: jf.import_run(name, tmp_path / "run")):
        with pytest.raises(InputError, match="no/such/name: no such folder; expected a run's, a Hugging Face folder"):
            call("no/such/name")
    assert not (tmp_path / "run").exists()
