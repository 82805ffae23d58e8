"""A family: classes of transformers, the conversion of their configs, and the table of their weights."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer import config
from jaxformer.config import Difference
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge
from jaxformer.interop.huggingface.table import Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.residual import ResidualBranch
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.base import Model

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
    "tanh": "tanh",
}
"""Our activations by transformers' names."""
NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}
"""transformers' names of our activations."""

NOT_COMPUTED = ("dropout", "attention_dropout", "dtype", "remat", "unroll")
"""Fields of a stack that do not change what its parameters compute."""


AUTO_CLASSES: Mapping[str, tuple[str, str | None]] = {
    "BertForPreTraining": ("AutoModelForPreTraining", "fill-mask"),
    "ForPreTraining": ("AutoModelForPreTraining", None),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForQuestionAnswering": ("AutoModelForQuestionAnswering", "question-answering"),
    "ForCausalLM": ("AutoModelForCausalLM", "text-generation"),
    "LMHeadModel": ("AutoModelForCausalLM", "text-generation"),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "text2text-generation"),
    "MTModel": ("AutoModelForSeq2SeqLM", "text2text-generation"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "Model": ("AutoModel", "feature-extraction"),
}
"""The auto class that loads an architecture, and the hub's name of its task, by the end of the architecture's name."""


Layout = Literal["plain", "encoder", "ended"]
"""The special tokens around texts, for a tokenizer without a template: none, [CLS] and [SEP], or an end token."""
MARKS = ("pad", "unk", "cls", "sep", "mask")
"""The special tokens of BERT's tokenizers."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of transformers' models."""

    model_type: str
    """Its name in a config.json."""
    architectures: tuple[str, ...]
    """The supported classes, the usual one first."""
    module: type[Model]
    """The class of the model."""
    build: Callable[[ConfigReader, Collection[str]], Model]
    """Makes the model of a config and the tensors' names; reads every field of the config that it honours."""
    describe: Callable[[Any], Mapping[str, Any]]
    """Makes the config of a model, with `architectures`, such that `build` makes the same model of it."""
    table: Table
    """The correspondence of parameters."""
    headless_architectures: tuple[str, ...] = ()
    """Architectures whose tensors lack the table's prefix."""
    constants: Callable[[Any], Mapping[str, np.ndarray]] | None = None
    """Tensors that the model computes and transformers stores, by name; exports write them."""
    own_pad: bool = False
    """Whether `describe` says which token is padding, because positions depend on it."""
    special_tokens: tuple[str, ...] = ("pad", "unk", "bos", "eos")
    """The special tokens that its tokenizers name, if the vocabulary has them."""
    layout: Layout = "plain"
    """The special tokens around its texts."""
    bridge: Bridge = Bridge()
    """Its objective and task, and how transformers' classes are called."""
    auto_classes: Mapping[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)
    """The auto class and the hub's task of architectures for which `AUTO_CLASSES` does not hold."""

    def auto_class(self, architecture: str) -> tuple[str, str | None]:
        """The auto class that loads an architecture, and the hub's name of its task."""
        known = {**self.auto_classes, **AUTO_CLASSES}
        return next(names for ending, names in known.items() if architecture.endswith(ending))


def stack(reader: ConfigReader, **fields: Any) -> Transformer:
    """Makes a Transformer; raises InputError that names the config if a field is invalid."""
    try:
        return Transformer(**fields)
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def explicit(model: Model) -> Model:
    """The model with the sizes that its fields leave to be derived, and without what only training needs."""
    return model.comparable().map_stacks(_explicit_stack)


def differences(model: Model, other: Model) -> list[Difference]:
    """Returns the fields in which two models compute differently."""
    return config.differences(explicit(model), explicit(other), "model")


def shortest_period(kinds: Sequence[Any]) -> int:
    """The least number of kinds of block that, repeated, give the kind of each block of a stack."""
    every = range(len(kinds))
    return next(size for size in range(1, len(kinds) + 1) if all(kinds[i] == kinds[i % size] for i in every))


def _explicit_stack(stack: Transformer) -> Transformer:
    kinds = [_explicit_variant(stack, number) for number in range(stack.depth)]
    first, size = kinds[0], shortest_period(kinds)
    residual = stack.residual
    if isinstance(residual, ResidualBranch):
        residual = None if residual.layer_scale is None else ResidualBranch(residual.layer_scale)
    plain = {field: Transformer.__dataclass_fields__[field].default for field in NOT_COMPUTED}
    return dataclasses.replace(
        stack,
        attention=first.attention,
        mlp=first.mlp,
        position_embedding=first.position_embedding,
        period=() if size == 1 else tuple(kinds[:size]),
        residual=residual,
        **plain,
    )


def _explicit_variant(stack: Transformer, number: int) -> Variant:
    """The parts of a block, with the sizes that its fields leave to be derived."""
    variant = stack.variant(number)
    attention, mlp = variant.attention, variant.mlp
    if isinstance(attention, Attention):
        groups, head_dim = attention.sizes(stack.heads, stack.width)
        scalar = attention.query_pre_attn_scalar or head_dim
        attention = dataclasses.replace(attention, kv_heads=groups, head_dim=head_dim, query_pre_attn_scalar=scalar)
    if isinstance(mlp, Mlp | GatedMlp):
        mlp = dataclasses.replace(mlp, width=mlp.inner(stack.width))
    return Variant(attention, mlp, variant.position_embedding)
