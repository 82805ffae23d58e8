"""Model cards: the class, the pipeline and the library that they name are transformers', and their code runs."""

import contextlib
import re

import huggingface_hub
import numpy as np
import pytest
import transformers
from small_writer import PIECES, small_tokenizer
from test_hf_runs import STACK, bert_run

from jaxformer.interop.huggingface.families import ARCHITECTURES, FAMILIES
from jaxformer.interop.huggingface.runs import export_run
from jaxformer.models.bert import Bert
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.runs import run as runs

OF_THE_HUB_ALONE = {"question-answering", "text2text-generation"}
"""Names of the hub for which transformers has no pipeline any more."""


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_architecture_has_the_auto_class_and_the_pipeline_of_transformers(architecture):
    auto, task = next(family.auto_class(architecture) for family in FAMILIES if architecture in family.architectures)
    theirs = getattr(transformers, architecture)
    if auto != architecture:  # No auto class loads a vocoder.
        found = getattr(transformers, auto)._model_mapping[theirs.config_class]
        assert theirs in (found if isinstance(found, tuple) else (found,))
    if task is not None and task not in OF_THE_HUB_ALONE:
        from transformers.pipelines import SUPPORTED_TASKS, TASK_ALIASES

        classes = [each.__name__ for each in SUPPORTED_TASKS[TASK_ALIASES.get(task, task)]["pt"]]
        pretraining = architecture == "BertForPreTraining"  # It fills masks too, by another class.
        assert auto in classes or pretraining


def exported(folder, heads, objective):
    model = Bert(STACK, vocab=len(PIECES), max_length=32, prediction_heads=heads)
    (folder / "run").mkdir()
    run = runs.open_run(bert_run(folder / "run", small_tokenizer(folder), model, objective))
    export_run(run, folder / "out", certificate=False)
    return run, huggingface_hub.ModelCard.load(folder / "out" / "README.md")


def test_the_code_of_a_card_loads_the_model(tmp_path, monkeypatch):
    run, card = exported(tmp_path, ("masked_lm",), MaskedLM(next_sentence=0.0))
    assert card.data.to_dict() == {"library_name": "transformers", "pipeline_tag": "fill-mask", "tags": ["jaxformer"]}
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1], names)
    assert type(names["model"]) is transformers.BertForMaskedLM
    assert names["tokenizer"].vocab_size == len(run.tokenizer.pieces)


def test_the_card_of_a_sentence_encoder_is_for_its_library(tmp_path, monkeypatch):
    run, card = exported(tmp_path, (), SentenceEmbedding())
    tags = ["sentence-transformers", "sentence-similarity", "feature-extraction", "jaxformer"]
    expected = {"library_name": "sentence-transformers", "pipeline_tag": "sentence-similarity", "tags": tags}
    assert card.data.to_dict() == expected
    code = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1]
    assert 'SentenceTransformer("out")' in code
    with contextlib.suppress(ImportError):
        import sentence_transformers  # noqa: F401

        monkeypatch.chdir(tmp_path)
        names = {}
        exec(code, names)
        vectors = [answer.vector for answer in run.predict(["A sentence.", "Another one."])]
        np.testing.assert_allclose(names["embeddings"], vectors, atol=1e-5)
