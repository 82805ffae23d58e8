"""Small models that read waveforms, and folders of the transformers library with them."""

import json
from pathlib import Path

import numpy as np
from small_bert import noisy_params

from jaxformer.data.tokenizers.characters import CharacterTokenizer
from jaxformer.data.transforms.framing import Framing
from jaxformer.models.speech_encoder import speech_stack
from jaxformer.models.wav2vec2 import Wav2Vec2Ctc

FRAMING = Framing((10, 3, 2), (5, 2, 2))
"""A frame every 20 samples, each computed from 30."""
RATE = 16_000
VOCAB = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6, "C": 7, "'": 8}
TOKENIZER = CharacterTokenizer(VOCAB)
SIZES = {"widths": (8, 12, 10), "framing": FRAMING, "position_taps": 8, "position_groups": 2}
STACK = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
CTC = Wav2Vec2Ctc(speech_stack(16, 2, 2, **STACK), vocab=len(VOCAB), **SIZES)

BASE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [8, 12, 10],
    "conv_kernel": [10, 3, 2],
    "conv_stride": [5, 2, 2],
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": len(VOCAB),
    "layerdrop": 0.0,
    "activation_dropout": 0.0,
}
LARGE = BASE | {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
    "num_conv_pos_embeddings": 5,
    "mask_time_prob": 0.0,
    "pad_token_id": 8,
    "ctc_loss_reduction": "mean",
}
PRETRAINING = {
    "mask_time_prob": 0.5,
    "mask_time_length": 3,
    "num_codevectors_per_group": 6,
    "codevector_dim": 8,
    "proj_codevector_dim": 12,
    "num_negatives": 7,
    "diversity_loss_weight": 0.2,
}
KINDS = {
    "base": ("Wav2Vec2", BASE, VOCAB),
    # The blank is not the first entry of the vocabulary.
    "large": ("Wav2Vec2", LARGE, {"<s>": 0, "</s>": 1, "<unk>": 2, "|": 3, "A": 4, "B": 5, "C": 6, "'": 7, "<pad>": 8}),
    "hubert": ("Hubert", BASE | {"feat_proj_layer_norm": False}, VOCAB),
}
"""The family, the config and the vocabulary of each kind of folder."""


def noisy(model):
    """Parameters drawn at random, none of them 0 or 1."""
    return noisy_params(model, np.zeros((1, FRAMING.samples(4)), np.float32))


def network(kind: str, head: str = "ForCTC"):
    """A network of the transformers library with random weights."""
    import torch
    import transformers
    from hf_weights import redraw

    family, config, _ = KINDS[kind]
    config = config | PRETRAINING if head == "ForPreTraining" else config
    torch.manual_seed(0)
    made = getattr(transformers, family + head)(getattr(transformers, f"{family}Config")(**config))
    return redraw(made, seed=1, size=0.3)


def saved(folder: Path, kind: str, head: str = "ForCTC") -> Path:
    """Writes a model of the transformers library with random weights, and its processor."""
    import transformers

    network(kind, head).save_pretrained(folder)
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=kind == "large")
    extractor.save_pretrained(folder)
    if head == "ForCTC":
        (folder / "vocab.json").write_text(json.dumps(KINDS[kind][2]))
        settings = {"tokenizer_class": "Wav2Vec2CTCTokenizer"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def waveform(seconds: float, seed: int = 0) -> np.ndarray:
    """Random samples, float32 [samples]."""
    return np.random.default_rng(seed).normal(0, 0.3, round(seconds * RATE)).astype(np.float32)
