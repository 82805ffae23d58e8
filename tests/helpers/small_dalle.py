"""A discrete autoencoder and a DALL·E small enough for a test."""

from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.dalle import Dalle
from jaxformer.models.discrete_vae import DiscreteVae

FIELDS = {"norm": LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
VAE = DiscreteVae(
    Transformer(16, 1, 2, **FIELDS), Transformer(16, 1, 2, **FIELDS), image=8, patch=4, codes=12, code_width=4
)
DALLE = Dalle(VAE, Transformer(16, 2, 2, **FIELDS), vocab=96, max_length=24)
