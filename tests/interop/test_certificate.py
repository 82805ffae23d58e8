"""The parity certificate: it passes what is the same, and names what is not."""

import dataclasses
import html.parser
import importlib.util
import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.models import ExportPlan, export_hf
from jaxformer.interop.parity.batches import MAX_TEXT_TOKENS
from jaxformer.interop.parity.certificate import Certificate, certify, obstacle
from jaxformer.interop.parity.compare import largest_difference
from jaxformer.interop.parity.lines import LOGITS
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.norms import HeadRMSNorm, LayerNorm, RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.residual import ResidualBranch
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.models.vit import Vit

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
TEXTS = [{"text": part} for part in PAGE.split("\n\n")]
VOCAB = 320
SIZES = (16, 2, 2)
LLAMA = Transformer(
    *SIZES,
    attention=Attention(kv_heads=1, bias=False),
    mlp=GatedMlp(24),
    norm=RMSNorm(1e-6),
    position_embedding=Rotary(),
)
HEADS = {"kv_heads": 1, "bias": False, "head_norm": HeadRMSNorm(zero_centered=True)}
GEMMA = dataclasses.replace(
    LLAMA,
    depth=4,
    attention=Attention(**HEADS),
    mlp=GatedMlp(24, "gelu_tanh"),
    norm=RMSNorm(zero_centered=True),
    norm_position="both",
    position_embedding=Rotary(1e6),
    period=(Variant(Attention(window=6, **HEADS), position_embedding=Rotary()), Variant()),
)
T5_SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "head_dim": 8}
MARIAN = Transformer(*SIZES, mlp=Mlp(activation="relu"), norm=LayerNorm(1e-5), norm_position="after")
BERT = Bert(Transformer(*SIZES, norm=LayerNorm(1e-12), norm_position="after"), VOCAB, 64)
BERT_ALONE = dataclasses.replace(BERT, prediction_heads=("pooler",))
MODELS = {
    "bert": (BERT, WordPiece(300)),
    "encoder": (dataclasses.replace(BERT, prediction_heads=()), WordPiece(300)),
    "gpt2": (
        Gpt(Transformer(*SIZES, mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5)), VOCAB, 64),
        ByteLevelBpe(300),
    ),
    "llama": (Gpt(LLAMA, VOCAB, 96, tie_embeddings=False), SentencePiece(300)),
    "gemma3": (Gpt(GEMMA, VOCAB, 96, scale_embeddings=True), SentencePiece(300, "bpe")),
    "t5": (
        T5(t5_stack(**T5_SIZES), t5_stack(**T5_SIZES, bidirectional=False), VOCAB),
        SentencePiece(300, sentinels=20),
    ),
    "marian": (EncoderDecoder(MARIAN, MARIAN, vocab=VOCAB, max_length=64, head_bias=True), SentencePiece(300, "bpe")),
}
GPT2 = MODELS["gpt2"][0]
PICTURES = Transformer(*SIZES, norm=LayerNorm(1e-6))
OTHERS = {
    "bert's classes": Classifier(BERT_ALONE, ("a", "b", "c")),
    "bert's spans": Classifier(dataclasses.replace(BERT_ALONE, prediction_heads=()), ("start", "end"), "none"),
    "gpt2's classes": Classifier(GPT2, ("a", "b", "c"), "last", bias=False),
    "vit": Vit(PICTURES, ("a", "b", "c"), image=8, patch=4),
    "masked autoencoder": MaskedAutoencoder(PICTURES, PICTURES, image=12, patch=4),
    "its encoder": MaskedAutoencoder(PICTURES, None, image=12, patch=4),
    "dinov2": Vit(dataclasses.replace(PICTURES, residual=ResidualBranch(0.5)), image=8, patch=4),
}


def drawn(model, size=0.2):
    """Random parameters, also those that are initialised as zeros or ones."""
    inputs = {name: np.zeros(spec.shape, spec.dtype) for name, spec in model.abstract_inputs().items()}
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), **inputs))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda array: array + rng.normal(0, size, array.shape).astype(np.float32), params)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    return {name: config.build(lambda: TEXTS, str(folder / name)) for name, (_, config) in MODELS.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_an_export_passes(name, tokenizers, tmp_path):
    model, params = MODELS[name][0], drawn(MODELS[name][0])
    export_hf(model, params, tokenizers[name], tmp_path / "out")
    certificate = certify(model, params, tokenizers[name], tmp_path / "out")
    compared = {line.what for line in certificate.lines}
    writes = not isinstance(model, Bert)
    heads = {"bert": {"logits", "next-sentence logits"}, "encoder": {"hidden"}}.get(name, {"logits"})
    assert compared == {*heads, "loss", "gradients", "tokens"} | ({"greedy tokens"} if writes else set())
    where = {line.where for line in certificate.lines if line.what == "loss"}
    assert {place.split(",")[0] for place in where} == {"short", "long", "padded", "out of distribution"}
    longest = min(MAX_TEXT_TOKENS, model.max_length)
    assert f"long, 1 × {longest}" in where
    if writes:
        (line,) = [line for line in certificate.lines if line.what == "greedy tokens"]
        assert "4 of 4 outputs" in line.note
    assert certificate.passed and str(certificate)
    content = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert content["passed"] and content["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params))
    assert len(content["lines"]) == len(certificate.lines) and content["versions"]["torch"].startswith("2.")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_classifiers_and_models_of_images_pass_too(name, tokenizers, tmp_path):
    model, params = OTHERS[name], drawn(OTHERS[name])
    tokenizer = None if isinstance(model, Vit | MaskedAutoencoder) else tokenizers["gpt2" if "gpt2" in name else "bert"]
    export_hf(model, params, tokenizer, tmp_path / "out")
    certificate = certify(model, params, tokenizer, tmp_path / "out")
    assert certificate.passed
    outputs = {line.what for line in certificate.lines} - {"tokens"}
    assert outputs == {"hidden" if name in ("dinov2", "its encoder") else "logits", "loss", "gradients"}
    assert len(certificate.lines) == (6 if tokenizer is None else 13)


@pytest.mark.slow
def test_half_precision_is_compared_with_what_the_folder_has(tokenizers, tmp_path):
    model, params = MODELS["gpt2"][0], drawn(MODELS["gpt2"][0])
    export_hf(model, params, tokenizers["gpt2"], tmp_path / "out", ExportPlan(dtype="bfloat16"))
    certificate = certify(model, params, tokenizers["gpt2"], tmp_path / "out")
    assert certificate.passed and certificate.dtype == "bfloat16"


@pytest.fixture(scope="module")
def gpt2(tokenizers, tmp_path_factory):
    model, params = MODELS["gpt2"][0], drawn(MODELS["gpt2"][0])
    folder = tmp_path_factory.mktemp("gpt2") / "out"
    export_hf(model, params, tokenizers["gpt2"], folder)
    return model, params, tokenizers["gpt2"], folder


@pytest.mark.parametrize("name", ["transformer.h.1.mlp.c_fc.weight", "transformer.wpe.weight"])
def test_one_weight_changed_by_a_hundredth_fails(gpt2, name):
    *parts, folder = gpt2
    file = folder / "model.safetensors"
    before = file.read_bytes()
    tensors = safetensors.numpy.load_file(file)
    tensors[name] = tensors[name] * np.float32(1.01)
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})
    try:
        with pytest.raises(
            InputError, match=r"the results differ from those of PyTorch: logits \(.* above 2e-05"
        ) as caught:
            certify(*parts, folder)
    finally:
        file.write_bytes(before)
    assert "\n" not in str(caught.value)
    content = json.loads((folder / "parity.json").read_text())
    assert not content["passed"] and not content["lines"][0]["passed"]
    assert content["lines"][0]["measured"] > 10 * LOGITS
    text = (folder / "parity.html").read_text()
    assert "failed: PyTorch computes other results" in text and 'class="failed"' in text


def test_another_tokenizer_fails(gpt2, tokenizers):
    model, params, _, folder = gpt2
    with pytest.raises(InputError, match=r"tokens \(\d+ hard strings\) differ"):
        certify(model, params, tokenizers["bert"], folder)


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_without_pytorch_it_says_what_to_install(name, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else find(asked))
    with pytest.raises(
        InputError, match=rf"no parity certificate: {name} is not installed; pip install 'jaxformer\[to"
    ):
        certify(BERT, {}, None, "nowhere")


def test_an_unknown_model_is_an_error():
    said = obstacle(Transformer(*SIZES))
    assert "Transformer is none of Bert, Gpt, T5, EncoderDecoder, Bart, Vit, MaskedAutoencoder, " in said
    assert "VideoVit" in said and "Classifier" in said


def test_gradients_with_nan_are_infinitely_far():
    one, other = {"a": np.ones(2), "b": np.array([1, np.nan])}, {"a": np.ones(2), "b": np.ones(2)}
    assert largest_difference(one, other) == largest_difference(other, one) == (np.inf, "b")
    assert largest_difference(other, {"a": np.array([1, 1.5])}) == (pytest.approx(1 / 3), "a")


@pytest.mark.slow
def test_the_page_is_self_contained_and_has_every_line(gpt2):
    certificate: Certificate = certify(*gpt2)
    text = (gpt2[-1] / "parity.html").read_text(encoding="utf-8")
    open_tags, rows = [], 0

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            nonlocal rows
            rows += tag == "tr"
            assert not {"src", "href"} & dict(attributes).keys()
            if tag != "meta":
                open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Reader().feed(text)
    assert not open_tags and rows == 1 + len(certificate.lines)
    assert (
        "http:" not in text
        and "https:" not in text
        and "GPT2LMHeadModel" in text
        and "passed: PyTorch computes the same" in text
    )
