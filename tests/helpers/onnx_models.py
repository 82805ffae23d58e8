"""Small models of every kind for which there are ONNX programs, as runs."""

import dataclasses

import numpy as np
from small_bert import noisy_params
from small_vit import AUTOENCODER, VIT, noisy
from small_writer import PIECES, QUIET, small_run, small_tokenizer

from jaxformer.interop.huggingface.folders import write_json
from jaxformer.interop.huggingface.image_runs import image_experiment
from jaxformer.interop.huggingface.runs import ORIGIN
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.norms import HeadRMSNorm, LayerNorm, RMSNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.residual import ResidualBranch
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.bart import Bart
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.t5 import T5, t5_stack
from jaxformer.models.vit import Vit

VOCAB, POSITIONS = len(PIECES), 32
TOKENS = np.zeros((1, 4), np.int32)
LABELS = ("yes", "no", "perhaps")
QUIET_STACK = Transformer(16, 2, 2, **QUIET)
AFTER = Transformer(16, 2, 2, norm=LayerNorm(1e-12), norm_position="after", **QUIET)
MARIAN = dataclasses.replace(AFTER, mlp=Mlp(activation="relu"), norm=LayerNorm(1e-5))
LLAMA = dataclasses.replace(
    Transformer(16, 2, 2, norm=RMSNorm(1e-6), mlp=GatedMlp(24), position_embedding=Rotary(), **QUIET),
    attention=Attention(kv_heads=1, bias=False),
)
HEADS = {"kv_heads": 1, "bias": False, "head_norm": HeadRMSNorm(zero_centered=True)}
GEMMA = dataclasses.replace(
    LLAMA,
    depth=3,
    attention=Attention(**HEADS),
    mlp=GatedMlp(24, "gelu_tanh"),
    norm=RMSNorm(zero_centered=True),
    norm_position="both",
    position_embedding=Rotary(1e6),
    period=(Variant(Attention(window=3, **HEADS), position_embedding=Rotary()), Variant()),
)
GPT2 = Gpt(
    Transformer(16, 2, 2, mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5), **QUIET), VOCAB, max_length=POSITIONS
)
T5_SIZES = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "head_dim": 8}
BERT = Bert(AFTER, VOCAB, POSITIONS)
ENCODER = dataclasses.replace(BERT, prediction_heads=())
POOLER = dataclasses.replace(BERT, prediction_heads=("pooler",))
MODELS = {
    "bert": BERT,
    "encoder": ENCODER,
    "gpt2": GPT2,
    "llama": Gpt(LLAMA, VOCAB, POSITIONS, tie_embeddings=False),
    "gemma3": Gpt(GEMMA, VOCAB, POSITIONS, scale_embeddings=True),
    "t5": T5(t5_stack(**T5_SIZES), t5_stack(**T5_SIZES, bidirectional=False), VOCAB, POSITIONS),
    "marian": EncoderDecoder(MARIAN, MARIAN, vocab=VOCAB, max_length=POSITIONS, head_bias=True),
    "bart": Bart(MARIAN, MARIAN, VOCAB, POSITIONS),
    "classes": Classifier(POOLER, ("yes", "no", "perhaps")),
    "tags": Classifier(ENCODER, ("yes", "no", "perhaps"), "none"),
    "spans": Classifier(ENCODER, ("start", "end"), "none"),
    "gpt2's classes": Classifier(GPT2, ("yes", "no", "perhaps"), "last", bias=False),
    "vit": VIT,
    "masked autoencoder": AUTOENCODER,
    "masked autoencoder's encoder": dataclasses.replace(AUTOENCODER, decoder=None),
    "dinov2": Vit(dataclasses.replace(VIT.transformer, residual=ResidualBranch(0.5)), image=12, patch=4, channels=1),
    # Forms for which transformers has no class.
    "tags of a pre-norm encoder": Classifier(Bert(QUIET_STACK, VOCAB, POSITIONS, prediction_heads=()), LABELS, "none"),
    "classes of a mean": Classifier(ENCODER, LABELS, "mean"),
    "a decoder with learned positions and a gate": Gpt(
        dataclasses.replace(LLAMA, position_embedding=None), VOCAB, POSITIONS, tie_embeddings=False
    ),
    "an encoder-decoder with rotary positions": EncoderDecoder(LLAMA, LLAMA, vocab=VOCAB, max_length=POSITIONS),
    "vit of sinusoids": dataclasses.replace(VIT, position_embedding="sinusoidal", pooling="mean", class_token=False),
}


def run_of(model, folder):
    """A run as if one had been trained, which remembers a class of transformers where several would do."""
    run = small_run(small_tokenizer(folder))
    if isinstance(model, Vit | MaskedAutoencoder):
        experiment, params, tokenizer = image_experiment(folder, model), noisy(model), None
    else:
        tokens = [TOKENS] * (2 if isinstance(model, EncoderDecoder) else 1)
        experiment, tokenizer = dataclasses.replace(run.experiment, model=model), run.tokenizer
        params = noisy_params(model, *tokens)
    if getattr(model, "labels", None) == ("start", "end"):
        write_json(folder / ORIGIN, {"architecture": "BertForQuestionAnswering"})
    return dataclasses.replace(run, folder=folder, experiment=experiment, params=params, tokenizer=tokenizer)
