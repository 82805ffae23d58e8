"""The contract of models: what the families say about themselves is what they do."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest
from small_bert import small_bert, small_transformer
from small_dalle import DALLE, VAE
from small_detr import DETR, WITH_RESNET, YOLOS
from small_dit import OF_CLASSES, OF_TEXTS
from small_segmentation import LINEAR, MASKED, SEGFORMER
from small_speech import FRAMING, SIZES
from small_speech import STACK as SPEECH
from small_video import FACTORISED, VIDEO_AUTOENCODER, VIDEO_VIT
from small_vit import AUTOENCODER, SCALED, VIT

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.positions import RelativeKeys
from jaxformer.models.bart import Bart
from jaxformer.models.base import ModelOutput
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.fast_speech import FastSpeech2, fast_speech_stack
from jaxformer.models.gpt import Gpt
from jaxformer.models.speech_encoder import speech_stack
from jaxformer.models.speech_t5 import SpeechT5, speech_t5_stack
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.models.wav2vec2 import Hubert, Wav2Vec2, Wav2Vec2Ctc
from jaxformer.models.whisper import Whisper
from jaxformer.parallel.sharding import AXES

STACK = small_transformer()
GROUPED = dataclasses.replace(STACK, attention=Attention(kv_heads=1), mlp=GatedMlp(24), norm_position="before")
T5_STACK = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "head_dim": 8}
MODELS = {
    "bert": small_bert(),
    "gpt": Gpt(STACK, 96, 24),
    "grouped": Gpt(GROUPED, 96, 24, tie_embeddings=False),
    "encoder-decoder": EncoderDecoder(STACK, STACK, vocab=96, max_length=24),
    "t5": T5(t5_stack(**T5_STACK), t5_stack(**T5_STACK, bidirectional=False), 96, 24),
    "bart": Bart(STACK, STACK, 96, 24),
    "classifier": Classifier(small_bert(), ("a", "b")),
    "classifier of a gpt": Classifier(Gpt(STACK, 96, 24), ("a", "b"), "last"),
    "vit": VIT,
    "vit of class and mean": SCALED,
    "masked autoencoder": AUTOENCODER,
    "detr": DETR,
    "detr of a resnet": WITH_RESNET,
    "yolos": YOLOS,
    "dalle": DALLE,
    "discrete autoencoder": VAE,
    "dit of classes": OF_CLASSES,
    "dit of texts": OF_TEXTS,
    "segmenter": MASKED,
    "segmenter with a linear decoder": LINEAR,
    "segformer": SEGFORMER,
    "video vit": VIDEO_VIT,
    "factorised video vit": FACTORISED,
    "masked autoencoder of clips": VIDEO_AUTOENCODER,
    # XLA counts the many operations of GELU, which are most of those of so small convolutions.
    "recognizer with ctc": Wav2Vec2Ctc(
        speech_stack(16, 2, 2, mlp=Mlp(activation="relu"), **SPEECH), activation="relu", **SIZES
    ),
    "wav2vec 2.0": Wav2Vec2(speech_stack(16, 2, 2, **SPEECH), **SIZES),
    "hubert": Hubert(speech_stack(16, 2, 2, **SPEECH), **SIZES),
    "whisper": Whisper(STACK, STACK, 96, 24, frames=12, mels=8),
    "fast speech": FastSpeech2(
        fast_speech_stack(16, 2, 2, 32), fast_speech_stack(16, 2, 2, 32), 96, 24, 20, predictor_width=16
    ),
    "speech t5": SpeechT5(
        speech_t5_stack(16, 2, 2, position_embedding=RelativeKeys(4)),
        speech_t5_stack(16, 2, 2),
        96,
        24,
        mels=8,
        postnet_width=8,  # XLA does not count the taps outside of a row.
    ),
}


def inputs_of(model, sizes):
    """Arrays of zeros, or ones for segments, of every input."""
    sizes = sizes | model.fixed_sizes()
    return {
        name: ("segments" in name) + np.zeros([sizes[letter] for letter in spec.axes], spec.dtype)
        for name, spec in model.inputs().items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_a_call_takes_every_input_that_a_model_names(name):
    model = MODELS[name]
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), **model.abstract_inputs()))["params"]
    arrays = inputs_of(model, {"b": 2, "t": 8, "s": 6, "m": 3, "c": 1, "a": 6, "u": FRAMING.samples(8)})
    arrays = {name: array.astype(bool) if name == "prefix" else array for name, array in arrays.items()}
    output = jax.eval_shape(lambda params: model.apply({"params": params}, **arrays), shapes)
    assert isinstance(output, ModelOutput)
    assert {letter for spec in model.inputs().values() for letter in spec.axes} <= AXES.keys()


@pytest.mark.parametrize("name", MODELS)
def test_stacks_are_at_the_paths_of_their_parameters(name):
    model = MODELS[name]
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), **model.abstract_inputs()))["params"]
    for path, stack in model.stacks().items():
        part = params
        for key in path.split("/"):
            part = part[key]
        assert len(jax.tree.leaves(part["blocks"])[0].shape) > 1 and len(part["blocks"])
        assert jax.tree.leaves(part["blocks"])[0].shape[0] == stack.depth
    assert all(stack.dtype == "bfloat16" for stack in model.replace_stacks(dtype="bfloat16").stacks().values())
    assert [stack.depth for stack in model.replace_stacks(dtype="bfloat16").stacks().values()] == [
        stack.depth for stack in model.stacks().values()
    ]


@pytest.mark.parametrize("name", MODELS)
def test_token_inputs_are_inputs(name):
    model = MODELS[name]
    assert model.token_inputs().keys() <= model.inputs().keys()
    for limit in model.token_inputs().values():
        assert limit.vocab == 96 and limit.max_length == 24


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_flops_are_those_of_the_compiled_program(name):
    """XLA counts element-wise operations too, so the products are about half of its count or more."""
    model = MODELS[name].replace_stacks(unroll=2, dtype="float32", dropout=0.0, attention_dropout=0.0)
    sizes = {"b": 2, "t": 8, "s": 6, "a": 6, "u": FRAMING.samples(8)}
    arrays = inputs_of(model, {**sizes, "m": 3, "c": 1})
    used = {"tokens", "inputs", "images", "clips", "noise", "log_mel", "samples", "frames", "speaker"}
    arrays = {name: array for name, array in arrays.items() if name in used}
    options = {"pooled_only": True} if "vit" in name else {}
    params = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), **arrays))["params"]

    def forward(params):
        output = model.apply({"params": params}, **arrays, **options)
        wanted = [getattr(output, name, None) for name in output.exported]
        return [array for array in wanted if array is not None]

    counted = jax.jit(forward).lower(params).compile().cost_analysis()["flops"]
    # The average causal token attends to half of the others; the program computes all scores of such short rows.
    causal = sum(
        2.0
        * sizes["b"]
        * sizes["t"] ** 2
        * stack.depth
        * stack.heads
        * stack.attention.sizes(stack.heads, stack.width)[1]
        for path, stack in model.stacks().items()
        if (model.is_generative and path != "encoder") or "gpt" in name
    )
    assert 0.45 * counted < model.flops(sizes) + causal < 1.02 * counted


def test_flops_of_bert_leave_out_what_no_head_reads():
    model, sizes = small_bert(), {"b": 4, "t": 24}
    width, tokens, vocab = 16, 24, 96

    def block(queries):
        return 4 * tokens * width**2 + queries * (20 * width**2 + 4 * tokens * width)

    heads = 5 * (2 * width**2 + 2 * width * vocab) + 2 * width**2 + 4 * width
    assert model.flops({**sizes, "m": 5, "c": 1}) == 4 * (block(tokens) + block(6) + heads)


@pytest.mark.parametrize("name", ["bert", "gpt", "encoder-decoder"])
def test_a_vocabulary_that_is_left_open_has_no_limits(name):
    with pytest.raises(InputError, match=r"model\.vocab=None"):
        _ = dataclasses.replace(MODELS[name], vocab=None).text_limits


def test_a_model_without_text_has_no_limits_of_text():
    assert VIT.text_limits is None
    with pytest.raises(InputError, match="model=Vit: reads no text"):
        VIT.require_text_limits()
