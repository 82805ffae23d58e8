"""ViT (Dosovitskiy et al. 2021)."""

from collections.abc import Collection
from typing import Any

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import Settings
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.labels import label_fields, read_labels
from jaxformer.interop.huggingface.table import Row, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.vit import Vit


def embeddings(theirs: str) -> list[Row]:
    """Patches, class token and positions, as every family of images has them."""
    return [
        Row("embeddings/patch/kernel", f"{theirs}.patch_embeddings.projection.weight", "d n y x -> y x n d"),
        Row("embeddings/patch/bias", f"{theirs}.patch_embeddings.projection.bias"),
        Row("embeddings/class_token", f"{theirs}.cls_token", "1 1 d -> d"),
        Row("embeddings/position", f"{theirs}.position_embeddings", "1 t d -> t d"),
    ]


def self_attention(ours: str, theirs: str) -> list[Row]:
    """The four maps of a layer."""
    inner = f"{theirs}.attention.attention"
    names = (f"{inner}.query", f"{inner}.key", f"{inner}.value", f"{theirs}.attention.output.dense")
    return attention(f"{ours}/attention", *names)


def blocks(ours: str, theirs: str) -> list[Row]:
    """The layers of ViT's and the masked autoencoder's stacks."""
    return [
        *self_attention(ours, theirs),
        *norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before"),
        *norm(f"{ours}/mlp_norm", f"{theirs}.layernorm_after"),
        *linear(f"{ours}/mlp/up", f"{theirs}.intermediate.dense"),
        *linear(f"{ours}/mlp/down", f"{theirs}.output.dense"),
    ]


TABLE = Table(
    (
        *embeddings("vit.embeddings"),
        *blocks("transformer/blocks", "vit.encoder.layer.{l}"),
        *norm("transformer/norm", "vit.layernorm"),
        *linear("pooler", "vit.pooler.dense"),
        *linear("head", "classifier"),
    ),
    known={"vit.embeddings.mask_token": "what stands for a patch in masked image modelling"},
    prefix="vit.",
)


def build(settings: Settings, names: Collection[str]) -> Vit:
    """Our ViT, with the head that has tensors."""
    settings.must("pooler_act", "tanh")
    settings.get("encoder_stride")  # Of masked image modelling's decoder.
    transformer = encoder(settings)
    settings.must("pooler_output_size", transformer.width)
    labels = read_labels(settings) if "classifier.weight" in names else ()
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    return image_model(settings, Vit, transformer=transformer, labels=labels, pooler=pooler)


def image_model(settings: Settings, module: type, **fields: Any) -> Any:
    """A model with the geometry that the config says; what our fields refuse is the config's fault."""
    geometry = {"image": "image_size", "patch": "patch_size"}
    fields |= {ours: settings.integer(theirs, {"image": 224, "patch": 16}[ours]) for ours, theirs in geometry.items()}
    channels = settings.integer("num_channels", 3)
    if channels != 3:  # No config.json says what pixels are normalised by, and a default for colours has three numbers.
        fields |= {"mean": (0.5,), "std": (0.5,)}
    try:
        return module(channels=channels, **fields)
    except InputError as error:
        raise InputError(f"{settings.where}: {error}") from error


def encoder(settings: Settings) -> Transformer:
    """The stack of ViT's and the masked autoencoder's config."""
    settings.must("qkv_bias", True)
    return stack(
        settings,
        width=settings.integer("hidden_size", 768),
        depth=settings.integer("num_hidden_layers", 12),
        heads=settings.integer("num_attention_heads", 12),
        mlp=Mlp(settings.integer("intermediate_size", 3072), settings.choice("hidden_act", ACTIVATIONS, "gelu")),
        norm=LayerNorm(settings.number("layer_norm_eps", 1e-12)),
        dropout=settings.rate("hidden_dropout_prob"),
        attention_dropout=settings.rate("attention_probs_dropout_prob"),
    )


def describe(model: Vit) -> dict[str, Any]:
    """Their config of our ViT."""
    if model.labels and model.pooler:
        raise InputError("model.pooler=True: ViTForImageClassification has none")
    head = label_fields(model.labels) if model.labels else {}
    return {
        "architectures": ["ViTForImageClassification" if model.labels else "ViTModel"],
        "pooler_act": "tanh",
        "pooler_output_size": model.transformer.width,
        "encoder_stride": model.patch,
        **head,
        **geometry(model),
        **encoder_fields(model.transformer),
    }


def geometry(model: Any) -> dict[str, Any]:
    """What their configs have of images and patches."""
    return {"image_size": model.image, "patch_size": model.patch, "num_channels": model.channels, "qkv_bias": True}


def encoder_fields(config: Transformer) -> dict[str, Any]:
    """What ViT's and the masked autoencoder's config have of the stack."""
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp.inner(config.width),
        "hidden_act": NAMES[config.mlp.activation],
        "layer_norm_eps": config.norm.epsilon,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.attention_dropout,
    }


FAMILY = Family(
    model_type="vit",
    architectures=("ViTForImageClassification", "ViTModel"),
    module=Vit,
    build=build,
    describe=describe,
    table=TABLE,
    bare=("ViTModel",),
)
