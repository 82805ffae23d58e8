"""A small ModernBERT: a global block in every three, a window of 4 tokens to each side in the others."""

from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, HeadLayer
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier

WINDOW = 5
LOCAL = Variant(Attention(bias=False, window=WINDOW), position_embedding=Rotary(10_000.0))


def modern_transformer(**fields) -> Transformer:
    """Four blocks of width 24."""
    defaults = {
        "width": 24,
        "depth": 4,
        "heads": 3,
        "attention": Attention(bias=False),
        "mlp": GatedMlp(20, "gelu"),
        "norm": LayerNorm(1e-5, bias=False),
        "first_norm": False,
        "position_embedding": Rotary(160_000.0),
        "period": (Variant(), LOCAL, LOCAL),
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "dtype": "float32",
    }
    return Transformer(**(defaults | fields))


def modern_bert(vocab=96, max_length=64, heads=("masked_lm",), **fields) -> Bert:
    """A ModernBERT of such a Transformer, whose `fields` these are."""
    transformer = modern_transformer(**fields)
    return Bert(transformer, vocab, max_length, token_types=0, prediction_heads=heads, head_bias=False)


def modern_classifier(labels, pooling="first", **fields) -> Classifier:
    """A classifier of it."""
    layer = HeadLayer("gelu", LayerNorm(1e-5, bias=False), bias=False)
    return Classifier(modern_bert(heads=(), **fields), labels, pooling, dropout=0.0, transform=layer)
