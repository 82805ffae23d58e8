"""A ViT and a masked autoencoder small enough for a test, and images."""

import numpy as np
from small_bert import noisy_params

from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.residual import ResidualBranch
from jaxformer.layers.transformer import Transformer
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.models.vit import Vit

FIELDS = {"norm": LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
GREY = {"image": 12, "patch": 4, "channels": 1}
VIT = Vit(Transformer(16, 2, 2, **FIELDS), labels=("zero", "one", "two"), **GREY)
SCALED = Vit(
    Transformer(16, 2, 2, residual=ResidualBranch(0.5, 0.3), **FIELDS),
    labels=("zero", "one"),
    pooling="first_and_mean",
    registers=2,
    **GREY,
)
AUTOENCODER = MaskedAutoencoder(
    Transformer(16, 2, 2, **FIELDS), Transformer(8, 1, 2, **FIELDS), mask_rate=0.6, mean=(0.5,), std=(0.5,), **GREY
)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 12, 12, 1), np.uint8)


def noisy(model):
    """Parameters drawn at random, none of them 0 or 1."""
    return noisy_params(model, np.zeros((1, model.image, model.image, model.channels), np.uint8))
