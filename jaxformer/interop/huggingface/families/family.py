"""Defines `Family`, the description of a model family: its classes in the transformers library, the conversion of its
configs, and the table of its weights.
"""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer import differences as configs
from jaxformer.differences import Difference
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge
from jaxformer.interop.huggingface.table import Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.experts import ExpertMlp
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
"""Maps names of activation functions in Hugging Face configs to names in jaxformer."""
NAMES = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_new",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "tanh": "tanh",
}
"""Maps names of activation functions in jaxformer to names in Hugging Face configs."""

NOT_COMPUTED = ("dropout", "attention_dropout", "dtype", "remat", "unroll")
"""Names of fields of a `Transformer` stack that do not change the results of a model."""


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
    "ForObjectDetection": ("AutoModelForObjectDetection", "object-detection"),
    "ForImageClassification": ("AutoModelForImageClassification", "image-classification"),
    "Model": ("AutoModel", "feature-extraction"),
}
"""Maps suffixes of class names in the transformers library to pairs: the auto class that loads classes with this
suffix, and the name of their task on the Hugging Face hub (None if they have no task).
"""


Layout = Literal["plain", "encoder", "ended"]
"""Special tokens that are added to texts if the tokenizer files do not contain a template for them: none (`plain`),
[CLS] and [SEP] (`encoder`), or an EOS token (`ended`).
"""
MARKS = ("pad", "unk", "cls", "sep", "mask")
"""Roles of the special tokens in BERT tokenizers."""


@dataclasses.dataclass(frozen=True)
class Family:
    """A model family of the transformers library, and the functions and tables that convert its models from and to JAX
    models.
    """

    model_type: str
    """Name of the family in config.json."""
    architectures: tuple[str, ...]
    """Names of the supported classes of the transformers library, the most common one first."""
    module: type[Model]
    """Class of the corresponding JAX model."""
    build: Callable[[ConfigReader, Collection[str]], Model]
    """Function `build(reader, names)` that builds a model from a config and the names of the stored tensors. Config
    fields that it does not read are rejected, unless they are known to be harmless.
    """
    describe: Callable[[Any], Mapping[str, Any]]
    """Function that converts a model to a config, including `architectures`. `build` must restore the same model from
    the config.
    """
    table: Table
    """Table that maps parameters to tensors of Hugging Face checkpoints."""
    headless_architectures: tuple[str, ...] = ()
    """Names of the classes without a head in the transformers library. The tensor names of these classes lack the
    prefix `Table.prefix`, which those of other classes have.
    """
    constants: Callable[[Any], Mapping[str, np.ndarray]] | None = None
    """Function that takes the model and returns tensors that the JAX model computes but Hugging Face checkpoints store,
    keyed by name. Exports write these tensors. None if there are no such tensors.
    """
    own_pad: bool = False
    """Whether `describe` determines the padding id, because the position ids of the model depend on it. An exported
    tokenizer must then have the same padding id.
    """
    special_tokens: tuple[str, ...] = ("pad", "unk", "bos", "eos")
    """Roles of special tokens that an exported tokenizer config declares, such as `pad` for `pad_token`. Roles whose
    token is not in the vocabulary are left out.
    """
    layout: Layout = "plain"
    """Special tokens that are added to a text if the tokenizer files do not contain a template for them: none
    (`plain`), [CLS] and [SEP] (`encoder`), or an EOS token (`ended`).
    """
    bridge: Bridge = Bridge()
    """Object that chooses the training objective and the data task of an imported model of this family, and converts
    its outputs to those of the corresponding class of the transformers library.
    """
    tokenizer_class: str = "PreTrainedTokenizerFast"
    """Class of the transformers library that loads the exported tokenizer."""
    auto_classes: Mapping[str, tuple[str, str | None]] = dataclasses.field(default_factory=dict)
    """Entries that take precedence over `AUTO_CLASSES` for this family: maps class names to pairs of auto class and
    task name.
    """

    def auto_class(self, architecture: str) -> tuple[str, str | None]:
        """Returns the auto class of the transformers library that loads the class `architecture`, and the name of its
        task on the Hugging Face hub (None if it has no task).
        """
        known = {**self.auto_classes, **AUTO_CLASSES}
        return next(names for ending, names in known.items() if architecture.endswith(ending))


def stack(reader: ConfigReader, **fields: Any) -> Transformer:
    """Builds a stack of Transformer blocks. If a field is invalid, raises an InputError that names the config."""
    with reader.located():
        return Transformer(**fields)


def sizes_of_sides(model: Model) -> dict[str, Any]:
    """Returns the sizes of the encoder and the decoder of a model, as config fields whose names start with `encoder_`
    or `decoder_`.
    """
    found = {}
    for side, part in model.stacks().items():
        found[f"{side}_layers"] = part.depth
        found[f"{side}_attention_heads"] = part.heads
        found[f"{side}_ffn_dim"] = part.mlp.inner(part.width)
    return found


def explicit(model: Model) -> Model:
    """Returns an equivalent model that can be compared field by field: derived sizes are filled in, and settings that
    affect only training have their defaults.
    """
    return model.comparable().map_stacks(_explicit_stack)


def differences(model: Model, other: Model) -> list[Difference]:
    """Returns the fields that differ between two models and make them compute different results."""
    return configs.differences(explicit(model), explicit(other), "model")


def shortest_period(kinds: Sequence[Any]) -> int:
    """Returns the length of the shortest sequence of block kinds that is repeated in a stack. The last repetition may
    be incomplete.
    """
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
    """Returns the settings of the block with index `number`, with derived sizes filled in."""
    variant = stack.variant(number)
    attention, mlp = variant.attention, variant.mlp
    if isinstance(attention, Attention):
        groups, head_dim = attention.sizes(stack.heads, stack.width)
        scalar = attention.query_pre_attn_scalar or head_dim
        attention = dataclasses.replace(attention, kv_heads=groups, head_dim=head_dim, query_pre_attn_scalar=scalar)
    if isinstance(mlp, Mlp | GatedMlp):
        mlp = dataclasses.replace(mlp, width=mlp.inner(stack.width))
    if isinstance(mlp, ExpertMlp):
        # The capacity and the losses only affect training.
        mlp = dataclasses.replace(mlp, width=mlp.inner(stack.width), capacity=None, balance_weight=0.0, z_weight=0.0)
    return Variant(attention, mlp, variant.position_embedding)
