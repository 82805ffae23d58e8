"""The same vectors as sentence-transformers' own, of folders that it saves and of those that we export."""

import json

import numpy as np
import pytest
import transformers
from hf_models import redrawn
from small_writer import PIECES, small_tokenizer
from test_hf_runs import STACK, bert_run

import jaxformer as jf
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.runs import export_run
from jaxformer.models.bert import Bert
from jaxformer.objectives.sentence_embedding import SentenceEmbedding

sentence_transformers = pytest.importorskip(
    "sentence_transformers",
    reason="sentence-transformers is not installed; pip install 'jaxformer[sentence_transformers]'",
)

from sentence_transformers.sentence_transformer import modules  # noqa: E402

TEXTS = ["w1 w2 w3", "w4x w5 w6 w7 w8 w9 w10 w11", "W2 w2", "w1 " * 40, "."]
WIDTH = 12


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A small BERT of transformers with its tokenizer, in a folder."""
    folder = tmp_path_factory.mktemp("encoder")
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 20}
    config = transformers.BertConfig(vocab_size=len(PIECES), max_position_embeddings=32, **sizes)
    redrawn(transformers.BertModel(config), seed=1).save_pretrained(folder)
    names = {name: f"[{name.split('_')[0].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token")}
    vocab = {piece: number for number, piece in enumerate(PIECES)}
    tokenizer = transformers.BertTokenizer(vocab=vocab, do_lower_case=False, **names, mask_token="[MASK]")
    tokenizer.save_pretrained(folder)
    return folder


def saved(folder, *parts, **settings):
    model = sentence_transformers.SentenceTransformer(modules=list(parts), device="cpu", **settings)
    model.save(str(folder))
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu")


def change(path, **fields):
    said = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in (said | fields).items() if value is not ...}))


def assert_same(folder, texts=TEXTS):
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    ours = np.stack([answer.vector for answer in jf.from_pretrained(folder).predict(texts)])
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    return theirs


@pytest.mark.parametrize("mode", ["mean", "cls", "max", "lasttoken"])
@pytest.mark.parametrize("normalized", [True, False], ids=["normalized", "plain"])
def test_folders_that_it_saves(encoder, tmp_path, mode, normalized):
    parts = [modules.Transformer(str(encoder)), modules.Pooling(WIDTH, mode)]
    saved(tmp_path / "model", *parts, *[modules.Normalize()] * normalized)
    assert_same(tmp_path / "model")


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_prompts(encoder, tmp_path, include, mode):
    parts = [modules.Transformer(str(encoder)), modules.Pooling(WIDTH, mode, include_prompt=include)]
    prompts = {"query": "w7 w8: ", "passage": "w9 "}
    theirs = saved(tmp_path / "model", *parts, prompts=prompts, default_prompt_name="query")
    vectors = assert_same(tmp_path / "model")
    assert np.abs(vectors - theirs.encode(TEXTS, prompt="")).max() > 1e-3
    run = jf.from_pretrained(tmp_path / "model")
    passages = run.predictor.embed(TEXTS, prompt_name="passage")
    np.testing.assert_allclose(passages, theirs.encode(TEXTS, prompt_name="passage"), atol=1e-5)


def test_where_a_text_is_cut_and_letters_become_small(encoder, tmp_path):
    saved(tmp_path / "model", modules.Transformer(str(encoder)), modules.Pooling(WIDTH))
    plain = assert_same(tmp_path / "model")
    change(tmp_path / "model" / "tokenizer_config.json", model_max_length=6)
    cut = assert_same(tmp_path / "model")
    assert np.abs(plain - cut).max(1).round(3).astype(bool).tolist() == [False, True, False, True, False]
    change(tmp_path / "model" / "sentence_bert_config.json", max_seq_length=8)
    assert np.abs(assert_same(tmp_path / "model") - cut).max() > 1e-3
    change(tmp_path / "model" / "sentence_bert_config.json", max_seq_length=..., do_lower_case=True)
    assert np.abs(assert_same(tmp_path / "model") - cut)[2].max() > 1e-3
    (tmp_path / "model" / "modules.json").unlink()
    assert_same(tmp_path / "model")


@pytest.mark.parametrize(
    "parts, words",
    [
        ([modules.Pooling(WIDTH), modules.Dense(WIDTH, 5)], r"modules.json: Dense \(in 2_Dense\) is not supported"),
        ([modules.Pooling(WIDTH, "weightedmean")], "pooling_mode=weightedmean is not supported"),
        ([modules.Pooling(WIDTH, ("mean", "max"))], "pooling_mode=mean and max is not supported"),
        ([modules.Pooling(WIDTH), modules.LayerNorm(WIDTH)], r"LayerNorm \(in 2_LayerNorm\) is not supported"),
    ],
)
def test_what_is_not_here_is_named(encoder, tmp_path, parts, words):
    saved(tmp_path / "model", modules.Transformer(str(encoder)), *parts)
    with pytest.raises(InputError, match=words):
        jf.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    "objective",
    [
        SentenceEmbedding("mean"),
        SentenceEmbedding("max", normalized=False),
        SentenceEmbedding("first", longest=9),
        SentenceEmbedding("last"),
        SentenceEmbedding("pooler", normalized=False),
        SentenceEmbedding("pooler"),
        SentenceEmbedding(prompts=(("query", "w1 w2 "),), default_prompt_name="query", include_prompt=False),
    ],
    ids=["mean", "max", "first", "last", "pooler", "normalized pooler", "prompt"],
)
def test_what_we_export(objective, tmp_path):
    (tmp_path / "run").mkdir()
    model = Bert(STACK, vocab=len(PIECES), max_length=32, prediction_heads=("pooler",))
    run = jf.open_run(bert_run(tmp_path / "run", small_tokenizer(tmp_path), model, objective))
    export_run(run, tmp_path / "out", certificate=False)
    loaded = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    ours = np.stack([answer.vector for answer in run.predict(TEXTS)])
    np.testing.assert_allclose(loaded.encode(TEXTS), ours, atol=1e-5)
    assert loaded.similarity_fn_name == "cosine" and loaded.max_seq_length == (objective.longest or 32)
    named = {name: text for name, text in loaded.prompts.items() if text}
    assert named == dict(objective.prompts) and loaded.default_prompt_name == objective.default_prompt_name
    assert_same(tmp_path / "out")
