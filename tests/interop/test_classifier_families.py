"""Classifiers of transformers: the same logits, the same tensors when written again, label names with them."""

import numpy as np
import pytest
import torch
import transformers
from hf_models import NO_TOKENS, POSITIONS, VOCAB, redrawn, saved
from safetensors.numpy import load_file
from small_bert import applied

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.folders import read_json
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, load
from jaxformer.objectives.classification import Classification

NAMES = ("sad", "so-so", "glad")
LABELS = {"num_labels": 3, "id2label": dict(enumerate(NAMES)), "label2id": {name: n for n, name in enumerate(NAMES)}}
ENCODER = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
ENCODER |= {"vocab_size": VOCAB, "max_position_embeddings": POSITIONS}
DISTIL = {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 20, "vocab_size": VOCAB}
GPT2 = {"n_embd": 12, "n_layer": 2, "n_head": 3, "vocab_size": VOCAB, "n_positions": POSITIONS}
GPT2 |= NO_TOKENS | {"pad_token_id": 0}
CLASSES = [
    ("Bert", "ForSequenceClassification", ENCODER | LABELS),
    ("Bert", "ForTokenClassification", ENCODER | LABELS),
    ("Bert", "ForQuestionAnswering", ENCODER),
    ("Roberta", "ForSequenceClassification", ENCODER | LABELS | {"type_vocab_size": 1}),
    ("Roberta", "ForTokenClassification", ENCODER | LABELS | {"type_vocab_size": 1}),
    ("Roberta", "ForQuestionAnswering", ENCODER | {"type_vocab_size": 1}),
    ("DistilBert", "ForTokenClassification", DISTIL | LABELS),
    ("DistilBert", "ForQuestionAnswering", DISTIL),
    ("GPT2", "ForSequenceClassification", GPT2 | LABELS),
]


def logits(theirs, tokens, lengths):
    """[b, 3] of each text, or [b, t, n] of each token."""
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        output = theirs(torch.from_numpy(tokens), attention_mask=torch.from_numpy(mask.astype(np.int64)))
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1).numpy()
    return output.logits.numpy()


@pytest.mark.slow
@pytest.mark.parametrize("family, kind, fields", CLASSES, ids=[family + kind for family, kind, _ in CLASSES])
def test_logits_are_transformers_and_tensors_and_labels_survive_the_round_trip(family, kind, fields, tmp_path):
    config = getattr(transformers, f"{family}Config")(**fields)
    theirs = redrawn(getattr(transformers, f"{family}{kind}")(config), seed=1)
    imported = load(open_folder(saved(theirs, tmp_path / "theirs")))
    expected_labels = ("start", "end") if kind == "ForQuestionAnswering" else NAMES
    assert imported.model.labels == expected_labels
    lengths = np.array([9, 4])
    tokens = np.random.default_rng(0).integers(3, VOCAB, (2, 9))
    tokens = np.where(np.arange(9) < lengths[:, None], tokens, config.pad_token_id)
    expected = logits(theirs, tokens, lengths)
    segments = (np.arange(9) < lengths[:, None]).astype(np.int32)
    actual = np.asarray(applied(imported.model, imported.params, tokens, segments).logits)
    if expected.ndim == 2:
        np.testing.assert_allclose(actual[:, 0], expected, atol=1e-5)
    else:
        for row, length in enumerate(lengths):
            np.testing.assert_allclose(actual[row, :length], expected[row, :length], atol=1e-5)
    export_hf(imported.model, imported.params, None, tmp_path / "ours", ExportPlan(origin=imported.origin))
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "ours"))
    assert before.keys() == after.keys() and all((before[name] == after[name]).all() for name in before)
    again = type(theirs).from_pretrained(tmp_path / "ours").eval()
    np.testing.assert_allclose(logits(again, tokens, lengths), expected, atol=1e-6)
    assert read_json(tmp_path / "ours" / "config.json")["architectures"] == [family + kind]
    if kind != "ForQuestionAnswering":
        assert tuple(again.config.id2label.values()) == NAMES
    assert Classification().inputs({"tokens": tokens, "other": 1}) == {"tokens": tokens}


def test_what_answers_questions_is_written_as_such_without_an_origin(tmp_path):
    theirs = transformers.BertForQuestionAnswering(transformers.BertConfig(**ENCODER))
    imported = load(open_folder(saved(theirs, tmp_path / "theirs")))
    export_hf(imported.model, imported.params, None, tmp_path / "ours")
    assert read_json(tmp_path / "ours" / "config.json")["architectures"] == ["BertForQuestionAnswering"]


def test_a_head_that_no_class_has_is_refused(tmp_path):
    config = transformers.BertConfig(**ENCODER, **LABELS)
    theirs = transformers.BertForSequenceClassification(config)
    imported = load(open_folder(saved(theirs, tmp_path / "theirs")))
    model = imported.model.clone(pooling="mean")
    with pytest.raises(InputError, match=r"model.pooling=mean with labels .* supports"):
        export_hf(model, imported.params, None, tmp_path / "ours")
