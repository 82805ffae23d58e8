"""ModernBERT family (Warner et al. 2024): conversion from and to Hugging Face transformers. ModernBERT is BERT with
local and global attention, rotary positions and gated MLPs.
"""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bert import BRIDGE
from jaxformer.interop.huggingface.families.classifiers import BRIDGE as CLASSIFIERS_BRIDGE
from jaxformer.interop.huggingface.families.classifiers import SPAN, classifier_table
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, MARKS, NAMES, Family, shortest_period, stack
from jaxformer.interop.huggingface.families.llama import ROPE, SCALINGS, rotary_in, rotary_of
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import GatedMlp, HeadLayer
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.pooling import Pooling
from jaxformer.layers.positions import Rotary
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier

GLOBAL, LOCAL = "full_attention", "sliding_attention"
BASES = {GLOBAL: ("global_rope_theta", 160_000.0), LOCAL: ("local_rope_theta", 10_000.0)}
"""Maps each kind of block to a pair: the older config field with the base frequency of the rotary position embeddings,
and the default of that field.
"""
POOLINGS: dict[str, Pooling] = {"cls": "first", "mean": "mean"}

LAYER, OURS = "model.layers.{l}", "transformer/blocks"
PARTS = [f"{OURS}/attention/{part}" for part in ("query", "key", "value")]
GATE_AND_UP = [f"{OURS}/mlp/{part}" for part in ("gate", "up")]

TABLE = Table(
    (
        ParamMapping("embeddings/token", "model.embeddings.tok_embeddings.weight", copies=("decoder.weight",)),
        *norm("embeddings/norm", "model.embeddings.norm"),
        # The first block has no attention norm, because the embeddings are already normalised.
        *(dataclasses.replace(row, first_layer=1) for row in norm(f"{OURS}/attention_norm", f"{LAYER}.attn_norm")),
        ParamMapping(tuple(f"{part}/kernel" for part in PARTS), f"{LAYER}.attn.Wqkv.weight", "(n h k) d -> n d h k"),
        ParamMapping(tuple(f"{part}/bias" for part in PARTS), f"{LAYER}.attn.Wqkv.bias", "(n h k) -> n h k"),
        *linear(f"{OURS}/attention/output", f"{LAYER}.attn.Wo", "d (h k) -> h k d"),
        *norm(f"{OURS}/mlp_norm", f"{LAYER}.mlp_norm"),
        ParamMapping(tuple(f"{part}/kernel" for part in GATE_AND_UP), f"{LAYER}.mlp.Wi.weight", "(n f) d -> n d f"),
        ParamMapping(tuple(f"{part}/bias" for part in GATE_AND_UP), f"{LAYER}.mlp.Wi.bias", "(n f) -> n f"),
        *linear(f"{OURS}/mlp/down", f"{LAYER}.mlp.Wo"),
        *norm("transformer/norm", "model.final_norm"),
        *linear("masked_lm/dense", "head.dense"),
        *norm("masked_lm/norm", "head.norm"),
        ParamMapping("masked_lm/bias", "decoder.bias"),
    ),
    prefix="model.",
)

UNUSED = (
    *("initializer_cutoff_factor", "cls_token_id", "layer_norm_eps", "position_embedding_type", "reference_compile"),
    *("deterministic_flash_attn", "repad_logits_with_grad", "sparse_prediction", "sparse_pred_ignore_index"),
    "classifier_pooling",
)
"""Names of config fields that do not affect the results: initialisation, kernels, a loss that gathers masked tokens,
the pooling of a classifier, and fields that the transformers library does not read.
"""


def build(reader: ConfigReader, names: Collection[str]) -> Bert:
    """Builds the model for a ModernBERT config. The model has a masked-LM head if `names`, the names of the stored
    tensors, include one.
    """
    reader.must("tie_word_embeddings", True)
    reader.must("norm_bias", False)
    for name in UNUSED:
        reader.get(name)
    has_head = "decoder.bias" in names
    activation = reader.choice("hidden_activation", ACTIVATIONS, "gelu")
    head_activation, head_bias = reader.get("classifier_activation", "gelu"), reader.flag("classifier_bias", False)
    if has_head and ACTIVATIONS.get(head_activation) != activation:
        raise reader.error("classifier_activation", head_activation, "that of hidden_activation")
    reader.must("decoder_bias", True)
    return Bert(
        _stack(
            reader,
            GatedMlp(reader.integer("intermediate_size", 1152), activation, reader.flag("mlp_bias", False)),
        ),
        vocab=reader.integer("vocab_size", 50_368),
        max_length=reader.integer("max_position_embeddings", 8192),
        token_types=0,
        prediction_heads=("masked_lm",) if has_head else (),
        head_bias=head_bias,
    )


def describe(model: Bert) -> dict[str, Any]:
    """Converts the model to a ModernBERT config."""
    config = model.transformer
    return {
        "architectures": ["ModernBertForMaskedLM" if "masked_lm" in model.prediction_heads else "ModernBertModel"],
        "vocab_size": model.vocab,
        "max_position_embeddings": model.max_length,
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp.inner(config.width),
        "hidden_activation": NAMES[config.mlp.activation],
        "mlp_bias": config.mlp.bias,
        "attention_bias": config.attention.bias,
        "norm_eps": config.norm.epsilon,
        "norm_bias": config.norm.bias,
        "classifier_activation": NAMES[config.mlp.activation],
        "classifier_bias": model.head_bias,
        "decoder_bias": True,
        "tie_word_embeddings": True,
        "embedding_dropout": config.dropout,
        "mlp_dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
    } | _block_fields(config)


def _stack(reader: ConfigReader, mlp: GatedMlp) -> Transformer:
    depth, bias = reader.integer("num_hidden_layers", 22), reader.flag("attention_bias", False)
    kinds = _kinds(reader, depth)
    # A window of transformers reaches half of this number of tokens to each side.
    window = reader.integer("local_attention", 128) // 2 + 1
    base, local_base = (_rotary(reader, kind) for kind in (GLOBAL, LOCAL))
    variants = {GLOBAL: Variant(), LOCAL: Variant(Attention(bias=bias, window=window), position_embedding=local_base)}
    return stack(
        reader,
        width=reader.integer("hidden_size", 768),
        depth=depth,
        heads=reader.integer("num_attention_heads", 12),
        attention=Attention(bias=bias),
        mlp=mlp,
        norm=LayerNorm(reader.number("norm_eps", 1e-5), bias=False),
        first_norm=False,
        position_embedding=base,
        period=tuple(variants[kind] for kind in kinds[: shortest_period(kinds)]),
        dropout=reader.rate("embedding_dropout", 0.0, "mlp_dropout"),
        attention_dropout=reader.rate("attention_dropout"),
    )


def _kinds(reader: ConfigReader, depth: int) -> list[str]:
    """Returns the kind of each block: with global or with local attention.

    Configs list the kinds (`layer_types`) or, in older files, give a period n: every n-th block is global.
    """
    every = reader.integer("global_attn_every_n_layers", 3)
    kinds = reader.get("layer_types") or [LOCAL if number % every else GLOBAL for number in range(depth)]
    if len(kinds) != depth or not set(kinds) <= set(BASES):
        raise reader.error("layer_types", kinds, f"{GLOBAL} or {LOCAL} for each of {depth} layers")
    return kinds


def _rotary(reader: ConfigReader, kind: str) -> Rotary:
    """Reads the rotary position embeddings for a kind of block from the newer or the older config fields."""
    base = reader.number(*BASES[kind])
    rope = reader.get("rope_parameters", {}).get(kind) or {}
    return rotary_of(reader, "rope_parameters", {"rope_theta": base} | reader.get("rope_scaling", {}) | rope)


def _block_fields(config: Transformer) -> dict[str, Any]:
    """Converts the kinds of blocks in a stack to config fields. Returns the newer fields and the older ones with the
    same meaning.
    """
    blocks = [config.variant(number) for number in range(config.depth)]
    kinds = [GLOBAL if block.attention.window is None else LOCAL for block in blocks]
    of_kind = dict(zip(reversed(kinds), reversed(blocks), strict=True))
    fields: dict[str, Any] = {"layer_types": kinds, "rope_parameters": {}}
    for kind, (older, default) in BASES.items():
        positions = rotary_in(of_kind[kind].position_embedding) if kind in of_kind else Rotary(default)
        scaling = {
            theirs: getattr(positions, ours) for theirs, ours in ROPE.items() if theirs in SCALINGS[positions.scaling]
        }
        kind_of_scaling = {"none": "default"}.get(positions.scaling, positions.scaling)
        fields["rope_parameters"][kind] = {"rope_type": kind_of_scaling, "rope_theta": positions.base} | scaling
        fields[older] = positions.base
    if LOCAL in of_kind:
        fields["local_attention"] = max(1, 2 * (of_kind[LOCAL].attention.window - 1))
    return fields | _every(kinds)


def _every(kinds: Sequence[str]) -> dict[str, int]:
    """Returns the older config field that says that every n-th block has global attention, if all other blocks have
    local attention. Otherwise returns an empty dict. `kinds` are the kinds of all blocks.
    """
    for every in range(1, len(kinds) + 1):
        if all((kind == LOCAL) == bool(number % every) for number, kind in enumerate(kinds)):
            return {"global_attn_every_n_layers": every}
    return {}


FAMILY = Family(
    model_type="modernbert",
    architectures=("ModernBertForMaskedLM", "ModernBertModel"),
    module=Bert,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("ModernBertModel",),
    special_tokens=MARKS,
    layout="encoder",
    bridge=BRIDGE,
)

HEAD = [
    *linear("transform/dense", "head.dense"),
    *norm("transform/norm", "head.norm"),
    *linear("head", "classifier", "c d -> d c"),
]


def _classifier(architecture: str, pooled: bool, span: bool = False) -> Family:
    """Builds a family of classifiers: of texts if `pooled`, of answer spans if `span`, and otherwise of tokens.
    `architecture` is the name of the class in the transformers library.
    """

    def build_classifier(reader: ConfigReader, names: Collection[str]) -> Classifier:
        backbone, pooling = build(reader, names), reader.choice("classifier_pooling", POOLINGS, "cls")
        activation = reader.choice("classifier_activation", ACTIVATIONS, "gelu")
        return Classifier(
            backbone,
            SPAN if span else read_labels(reader),
            pooling if pooled else "none",
            reader.number("classifier_dropout", 0.0),
            transform=HeadLayer(activation, backbone.transformer.norm, reader.flag("classifier_bias", False)),
        )

    def describe_classifier(model: Classifier) -> dict[str, Any]:
        poolings = {ours: theirs for theirs, ours in POOLINGS.items()} if pooled else {"none": "cls"}
        if model.pooling not in poolings or (span and model.labels != SPAN):
            form = f"model.pooling={model.pooling} with labels {model.labels}"
            raise InputError(f"{form}: {architecture} supports {' or '.join(poolings)}")
        if model.transform is None:
            raise InputError(f"model.transform=None: expected a layer before the classes, as in {architecture}")
        if model.backbone.prediction_heads:
            raise InputError(f"model.backbone.prediction_heads={model.backbone.prediction_heads}: expected none")
        named = {} if span else label_fields(model.labels)
        own = {
            "architectures": [architecture],
            "classifier_activation": NAMES[model.transform.activation],
            "classifier_bias": model.transform.bias,
            "classifier_dropout": model.dropout,
            "classifier_pooling": poolings[model.pooling],
        }
        return dict(FAMILY.describe(model.backbone)) | named | own

    return dataclasses.replace(
        FAMILY,
        architectures=(architecture,),
        module=Classifier,
        build=build_classifier,
        describe=describe_classifier,
        table=classifier_table(TABLE, HEAD),
        headless_architectures=(),
        bridge=CLASSIFIERS_BRIDGE,
    )


CLASSIFIERS = (
    _classifier("ModernBertForSequenceClassification", pooled=True),
    _classifier("ModernBertForQuestionAnswering", pooled=False, span=True),
    _classifier("ModernBertForTokenClassification", pooled=False),
)
"""Families of ModernBERT classifiers. Question answering comes before token classification, because the family of token
classification would match question answering models too.
"""
