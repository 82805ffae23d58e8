"""Exports for other programs follow their conventions and compute the same; CTranslate2 converts it."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import torch
import transformers
from hf_models import VOCAB, redrawn
from small_bert import applied, noisy_params
from small_writer import GPT, small_run, small_tokenizer

import jaxformer as jf
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface.conventions import to_exportable_form
from jaxformer.interop.huggingface.runs import export_run
from jaxformer.interop.huggingface.text.permuted_tokenizer import permuted
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.objectives.causal_lm import CausalLM
from jaxformer.objectives.seq2seq_lm import Seq2SeqLM
from jaxformer.training.checkpoint_arrays import loaded as in_memory

del VOCAB, redrawn  # Importing their module keeps transformers quiet.

TEXTS = ["the dog ran to the sea", "the old king saw the moon", "a cat had the sun, and then gave it away"]
STACK = dataclasses.replace(
    GPT.transformer, norm_position="after", norm=LayerNorm(1e-5), mlp=Mlp(32, "relu"), dtype="float32"
)
UNUSED = 5
"""Ids of the models' vocabularies that the tokenizers do not have."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("\n\n".join(f"{text} {number}" for number in range(40) for text in TEXTS))
    return TextFiles((str(path),))


def sharp(params):
    """The parameters with larger matrices, so that no two tokens are nearly as likely."""
    grown = {
        name: jax.tree.map(lambda array: array * (2 if array.ndim > 2 else 1), part) for name, part in params.items()
    }
    return grown | {"embeddings": params["embeddings"] | {"token": 2 * params["embeddings"]["token"]}}


def varied(tokenizer):
    """Settings that name a token, whose id an export may change."""
    return Decoding(max_new_tokens=12, no_repeat_ngram_size=2, suppress_tokens=(tokenizer.unk_id,))


def translator(tokenizer, **fields):
    """A run of an encoder–decoder of the paper's form whose vocabulary is larger than the tokenizer's."""
    size = tokenizer.vocab_size + UNUSED
    model = EncoderDecoder(STACK, STACK, vocab=size, max_length=48, zero_start=True, **fields)
    run = small_run(tokenizer, Seq2SeqLM(decoding=varied(tokenizer)))
    experiment = dataclasses.replace(run.experiment, model=model)
    params = sharp(noisy_params(model, *[np.zeros((1, 4), np.int32)] * 2))
    return dataclasses.replace(run, experiment=experiment, params=params)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    tokenizer = SentencePiece(40).build(corpus.open, str(tmp_path_factory.mktemp("tokenizer") / "kept"))
    return translator(tokenizer)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "out"
    export_run(run, out)
    return out


KINDS = {"unigram": SentencePiece(40), "bpe": SentencePiece(60, "bpe"), "word piece": WordPiece(120)}
KINDS["byte level"] = ByteLevelBpe(300)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_tokenizer_in_another_order_finds_the_same_pieces(kind, corpus, tmp_path):
    before = kind.build(corpus.open, str(tmp_path / "kept"))
    order = np.random.default_rng(0).permutation(before.vocab_size)
    after = permuted(before, order)
    assert after.pieces[after.pad_id] == "<pad>" and after.vocab_size == before.vocab_size
    for text in [*TEXTS, "Éxtra ☃ wörds", " two  spaces "]:
        np.testing.assert_array_equal(order[after.encode(text)], before.encode(text))
        assert after.decode(after.encode(text)) == before.decode(before.encode(text))
    for name in ("unk_id", "pad_id", "eos_id", "cls_id", "mask_id"):
        assert order[getattr(after, name)] == getattr(before, name)
    after.save(str(tmp_path / "after"))
    assert permuted(after, np.arange(after.vocab_size)) is after


@pytest.mark.slow
@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False, "head_bias": True}])
def test_a_translator_in_marians_form_writes_the_same(run, fields):
    run = translator(run.tokenizer, **fields) if fields else run
    after = to_exportable_form(run)
    assert after.model.vocab == after.tokenizer.vocab_size == run.model.vocab - UNUSED
    assert after.tokenizer.pad_id == after.model.vocab - 1
    assert not np.asarray(after.params["embeddings"]["token"])[-1].any()
    loaded = dataclasses.replace(after, params=in_memory(after.params))
    assert list(map(str, loaded.predict(TEXTS))) == list(map(str, run.predict(TEXTS)))
    assert len(set(map(str, run.predict(TEXTS)))) == len(TEXTS)
    assert to_exportable_form(loaded).params is loaded.params, "nothing is left to change"


@pytest.mark.slow
def test_the_first_token_of_an_answer_is_of_no_importance_where_it_counts_as_zeros(run):
    """Alone, packed after another example, and in a cache."""
    tokens = np.array([[7, 8, 9, 3, 8, 9]])
    places = {"input_segments": np.ones((1, 6), int), "segments": np.array([[1, 1, 1, 2, 2, 2]])}
    places["position_ids"] = np.array([[0, 1, 2, 0, 1, 2]])
    inputs = np.arange(6)[None] + 5

    def logits(outputs, model=run.model):
        return np.asarray(applied(model, run.params, inputs, outputs, **places).logits)

    other = np.where(places["position_ids"] == 0, 11, tokens)
    np.testing.assert_array_equal(logits(tokens), logits(other))
    plain = dataclasses.replace(run.model, zero_start=False)
    assert not np.allclose(logits(tokens, plain), logits(other, plain))


@pytest.mark.slow
def test_transformers_writes_the_same_and_the_export_comes_back(run, exported):
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    config = json.loads((exported / "config.json").read_text())
    assert config["pad_token_id"] == config["decoder_start_token_id"] == config["vocab_size"] - 1
    assert len(tokenizer) == config["vocab_size"] and tokenizer.pad_token == "<pad>"
    back = jf.from_pretrained(exported)
    for text, expected in zip(TEXTS, run.predict(TEXTS), strict=True):
        output = theirs.generate(**tokenizer(text, return_tensors="pt"))[0]
        assert tokenizer.decode(output, skip_special_tokens=True).strip() == str(expected)
        assert str(back.predict(text)) == str(expected)
    assert torch.equal(theirs.model.shared.weight[-1], torch.zeros(16))


@pytest.mark.slow
def test_a_gpts_vocabulary_is_cut_to_the_tokenizer(tmp_path):
    tokenizer = small_tokenizer(tmp_path)
    base = small_run(tokenizer, CausalLM(decoding=Decoding(8)))
    stack = dataclasses.replace(STACK, norm_position="before", mlp=Mlp(32))
    model = dataclasses.replace(GPT, transformer=stack, vocab=tokenizer.vocab_size + UNUSED)
    experiment = dataclasses.replace(base.experiment, model=model)
    run = dataclasses.replace(base, experiment=experiment, params=noisy_params(model, np.zeros((1, 4), np.int32)))
    export_run(run, tmp_path / "out")
    back = jf.from_pretrained(tmp_path / "out")
    assert back.model.vocab == tokenizer.vocab_size
    assert str(back.predict("w1 w2")) == str(run.predict("w1 w2"))


def test_ctranslate2_converts_a_translator(run, exported, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra ctranslate2")
    ctranslate2.converters.TransformersConverter(str(exported)).convert(str(tmp_path / "translator"))
    translator = ctranslate2.Translator(str(tmp_path / "translator"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    # Greedily: its beam search is another one than that of transformers.
    settings = {"beam_size": 1, "max_decoding_length": 12, "no_repeat_ngram_size": 2, "disable_unk": True}
    for text, expected in zip(TEXTS, run.predict(TEXTS), strict=True):
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)
        result = translator.translate_batch([tokens], **settings)
        ids = tokenizer.convert_tokens_to_ids(result[0].hypotheses[0])
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == str(expected)


@pytest.mark.slow
def test_ctranslate2_converts_a_gpt(corpus, tmp_path):
    ctranslate2 = pytest.importorskip("ctranslate2", reason="needs the extra ctranslate2")
    tokenizer = ByteLevelBpe(300).build(corpus.open, str(tmp_path / "kept"))
    base = small_run(tokenizer, CausalLM(decoding=Decoding(8)))
    stack = dataclasses.replace(STACK, norm_position="before", mlp=Mlp(64, "gelu_tanh"))
    model = dataclasses.replace(GPT, transformer=stack, vocab=tokenizer.vocab_size + UNUSED)
    params = sharp(noisy_params(model, np.zeros((1, 4), np.int32)))
    experiment = dataclasses.replace(base.experiment, model=model)
    run = dataclasses.replace(base, experiment=experiment, params=params)
    export_run(run, tmp_path / "out", certificate=False)
    ctranslate2.converters.TransformersConverter(str(tmp_path / "out")).convert(str(tmp_path / "generator"))
    generator = ctranslate2.Generator(str(tmp_path / "generator"))
    (prompt,) = run.predictor.prompts([TEXTS[0]])
    (expected,) = run.predictor.write([prompt])
    tokens = [tokenizer.pieces[number] for number in prompt]
    result = generator.generate_batch([tokens], max_length=8, include_prompt_in_result=False)[0]
    assert result.sequences_ids[0] == [number for number in expected.tolist() if number != tokenizer.eos_id]
