"""Raw texts and pairs of texts: a run and transformers predict the same from one folder and the same strings."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
from hf_models import redrawn
from small_bert import noisy_params
from test_folder_tokenizers import ROBERTA_NAMES, byte_level_folder
from test_hf_tokenizers import TEXTS

import jaxformer as jf
from jaxformer.data.tokenizers import ByteLevelBpe
from jaxformer.interop.huggingface.models import export_hf
from jaxformer.interop.huggingface.runs import export_run, from_pretrained
from jaxformer.models.classifier import Classifier
from jaxformer.models.gpt import Gpt
from jaxformer.predictors.labelled_texts import text_logits

PAIRS = [
    ("the dog ran", "the cat saw"),
    ("day", "and darkness, night; naïve café"),
    ("a longer text than the other", "x"),
]
SINGLES = [first for first, _ in PAIRS] + ["called day"]
LABELS = {"id2label": {0: "sad", 1: "so-so", 2: "glad"}, "label2id": {"sad": 0, "so-so": 1, "glad": 2}}
SIZES = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
POSITIONS = 42


def roberta_folder(path, head, max_length=POSITIONS, **fields):
    folder = byte_level_folder(path, "roberta", ROBERTA_NAMES, tokenizer_class="RobertaTokenizer")
    vocab = json.loads((folder / "vocab.json").read_text())
    config = transformers.RobertaConfig(
        vocab_size=len(vocab),
        max_position_embeddings=max_length,
        type_vocab_size=1,
        bos_token_id=vocab["<s>"],
        pad_token_id=vocab["<pad>"],
        eos_token_id=vocab["</s>"],
        **SIZES,
        **fields,
    )
    redrawn(getattr(transformers, f"Roberta{head}")(config), 0).save_pretrained(folder)
    transformers.RobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def theirs_on(folder, texts):
    """The probabilities of the pipeline for texts or pairs, in the order of the labels."""
    pipeline = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder))
    asked = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
    found = [pipeline(one, top_k=None) for one in asked]
    return np.array([[part["score"] for part in sorted(one, key=lambda part: part["label"])] for one in found])


def ours_on(run, texts):
    answers = run.predict([text if isinstance(text, str) else "\t".join(text) for text in texts])
    return np.array([[share for _, share in sorted(one.labels)] for one in answers])


def test_pairs_for_a_roberta_classifier(tmp_path):
    folder = roberta_folder(tmp_path / "hf", "ForSequenceClassification", **LABELS)
    run = from_pretrained(folder)
    np.testing.assert_allclose(ours_on(run, PAIRS + SINGLES), theirs_on(folder, PAIRS + SINGLES), atol=2e-5)
    out = tmp_path / "out"
    export_run(run, out, certificate=False)
    np.testing.assert_allclose(ours_on(run, PAIRS + SINGLES), theirs_on(out, PAIRS + SINGLES), atol=2e-5)


def test_questions_for_a_roberta_reader(tmp_path):
    folder = roberta_folder(tmp_path / "hf", "ForQuestionAnswering", 202)
    run = from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    questions = [("who ran", "the dog ran and the cat saw"), ("what was day", "the light was called day")]
    for (question, context), answer in zip(
        questions, run.predict(["\t".join(pair) for pair in questions]), strict=True
    ):
        given = tokenizer(question, context, return_tensors="pt", return_offsets_mapping=True)
        offsets = given.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            output = model(**given)
        inside = [number for number, part in enumerate(given.sequence_ids(0)) if part == 1]
        allowed = [0, *inside]
        starts, ends = (
            torch.log_softmax(logits[0, allowed].double(), -1)[1:]
            for logits in (output.start_logits, output.end_logits)
        )
        scores = starts[:, None] + ends[None, :]
        first, last = divmod(int(torch.triu(scores.exp()).argmax()), len(inside))
        assert (answer.start, answer.stop) == (offsets[inside[first]][0], offsets[inside[last]][1])
        assert answer.probability == pytest.approx(float(scores[first, last].exp()), rel=1e-4)


@pytest.mark.parametrize("pad", ["<|endoftext|>", "<pad>", None])
def test_gpt2_reads_the_token_that_transformers_reads(pad, tmp_path):
    special = ["<|endoftext|>", "<pad>"]
    names = {"pad_token": pad} if pad else {}
    folder = byte_level_folder(tmp_path / "hf", "gpt2", special, tokenizer_class="GPT2Tokenizer", **names)
    vocab = json.loads((folder / "vocab.json").read_text())
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": vocab.get(pad)}
    sizes = {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": POSITIONS, "vocab_size": len(vocab)}
    config = transformers.GPT2Config(**sizes, **ends, **LABELS)
    redrawn(transformers.GPT2ForSequenceClassification(config), 0).save_pretrained(folder)
    run = from_pretrained(folder)
    np.testing.assert_allclose(ours_on(run, PAIRS + SINGLES), theirs_on(folder, PAIRS + SINGLES), atol=2e-5)
    with pytest.raises(jf.InputError, match="an empty text"):
        run.predict([""])
    out = tmp_path / "out"
    export_run(run, out, certificate=False)
    np.testing.assert_allclose(ours_on(run, PAIRS + SINGLES), theirs_on(out, PAIRS + SINGLES), atol=2e-5)


def test_a_gpt_classifier_of_our_own_is_exported_with_its_end_token(tmp_path):
    """Its rows end with the end token, so the exported tokenizer adds it."""
    tokenizer = ByteLevelBpe(400).build(lambda: TEXTS, str(tmp_path / "kept"))
    stack = dataclasses.replace(Gpt().transformer, depth=2, width=12, heads=3, dtype="float32")
    backbone = Gpt(stack, vocab=tokenizer.vocab_size, max_length=POSITIONS)
    model = Classifier(backbone, ("sad", "so-so", "glad"), "last", bias=False)
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    export_hf(model, params, tokenizer, tmp_path / "out")
    logits = text_logits(model, params, tokenizer, [*PAIRS, *SINGLES])
    expected = theirs_on(tmp_path / "out", PAIRS + SINGLES)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    order = np.argsort(["sad", "so-so", "glad"])
    np.testing.assert_allclose(shares[:, order], expected, atol=2e-5)
    again = from_pretrained(tmp_path / "out")
    np.testing.assert_allclose(ours_on(again, PAIRS + SINGLES), expected, atol=2e-5)
