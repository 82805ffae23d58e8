"""ViT family (Dosovitskiy et al. 2021): conversion from and to Hugging Face transformers."""

from collections.abc import Collection, Mapping
from typing import Any

import jax

from jaxformer.config import Objective
from jaxformer.data.fields.image import ImageField
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.images import ImageTask, LabelledImages
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source, stack_sizes
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.folders import CONFIG
from jaxformer.interop.huggingface.image_forms import image_run
from jaxformer.interop.huggingface.images import read_preparation
from jaxformer.interop.huggingface.labels import SINGLE, label_fields, read_labels, read_problem_type
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import Model
from jaxformer.models.vit import Vit
from jaxformer.objectives.image_classification import ImageClassification
from jaxformer.objectives.image_embedding import ImageEmbedding
from jaxformer.runs.run import Run


def embeddings(theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the patch, class token and position embeddings to tensors of a
    Hugging Face checkpoint. Several image families use these mappings.
    """
    return [
        ParamMapping("embeddings/patch/kernel", f"{theirs}.patch_embeddings.projection.weight", "d n y x -> y x n d"),
        ParamMapping("embeddings/patch/bias", f"{theirs}.patch_embeddings.projection.bias"),
        ParamMapping("embeddings/class_token", f"{theirs}.cls_token", "1 1 d -> d"),
        ParamMapping("embeddings/position", f"{theirs}.position_embeddings", "1 t d -> t d"),
    ]


def self_attention(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of self-attention in a ViT block to tensors of a Hugging Face
    checkpoint. `ours` is the path of the parameters, and `theirs` the prefix of the tensor names.
    """
    inner = f"{theirs}.attention.attention"
    output = f"{theirs}.attention.output.dense"
    return attention(f"{ours}/attention", f"{inner}.query", f"{inner}.key", f"{inner}.value", output)


def blocks(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the Transformer blocks in a ViT or masked autoencoder to tensors of a
    Hugging Face checkpoint. `ours` is the path of the parameters, and `theirs` the prefix of the tensor names.
    """
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
    known={"vit.embeddings.mask_token": "replaces masked patches in masked image modelling"},
    prefix="vit.",
)


def build(reader: ConfigReader, names: Collection[str]) -> Vit:
    """Builds the model for a ViT config. `names` are the names of the stored tensors, which determine whether the model
    has a classification head and a pooler.
    """
    reader.must("pooler_act", "tanh")
    reader.get("encoder_stride")  # Only used by the decoder for masked image modelling.
    transformer = encoder(reader)
    reader.must("pooler_output_size", transformer.width)
    labels = read_labels(reader) if "classifier.weight" in names else ()
    pooler = any(name.endswith("pooler.dense.weight") for name in names)
    return image_model(reader, Vit, transformer=transformer, labels=labels, pooler=pooler)


def image_model(reader: ConfigReader, module: type, **fields: Any) -> Any:
    """Builds an image model of class `module` with the image and patch sizes of a config and the given other `fields`.
    Raises an InputError that names the config if a value is invalid.
    """
    geometry = {"image": "image_size", "patch": "patch_size"}
    fields |= {ours: reader.integer(theirs, {"image": 224, "patch": 16}[ours]) for ours, theirs in geometry.items()}
    channels = reader.integer("num_channels", 3)
    if channels != 3:  # Pixel statistics are not in config.json, and the default has three channels.
        fields |= {"mean": (0.5,), "std": (0.5,)}
    try:
        return module(channels=channels, **fields)
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def encoder(reader: ConfigReader) -> Transformer:
    """Builds the stack of Transformer blocks for a ViT or masked autoencoder config."""
    reader.must("qkv_bias", True)
    return stack(
        reader,
        width=reader.integer("hidden_size", 768),
        depth=reader.integer("num_hidden_layers", 12),
        heads=reader.integer("num_attention_heads", 12),
        mlp=Mlp(reader.integer("intermediate_size", 3072), reader.choice("hidden_act", ACTIVATIONS, "gelu")),
        norm=LayerNorm(reader.number("layer_norm_eps", 1e-12)),
        dropout=reader.rate("hidden_dropout_prob"),
        attention_dropout=reader.rate("attention_probs_dropout_prob"),
    )


def describe(model: Vit) -> dict[str, Any]:
    """Converts the model to a ViT config."""
    if model.labels and model.pooler:
        raise InputError("model.pooler=True: expected False, because ViTForImageClassification has no pooler")
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
    """Converts the image and patch sizes of a model to config fields."""
    return {"image_size": model.image, "patch_size": model.patch, "num_channels": model.channels, "qkv_bias": True}


def encoder_fields(config: Transformer) -> dict[str, Any]:
    """Converts the stack of a ViT or masked autoencoder to config fields."""
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


def image_sizes(model: Any) -> dict[str, Any]:
    """Returns the sizes of an image model as config fields, with the field names that most families use."""
    geometry = {"image_size": model.image, "patch_size": model.patch, "num_channels": model.channels}
    return {**stack_sizes(next(iter(model.stacks().values()))), **geometry}


def image_field(source: Source, model: Any) -> ImageField:
    """Returns the data field that reads images for a model. Images are preprocessed as the imported folder
    specifies.
    """
    preparation = read_preparation(source.home, model)
    fields = {"size": model.image, "channels": model.channels}
    return ImageField(**fields | (preparation.field if preparation else {}))


class ImageBridge(Bridge):
    """Chooses the training objective and the data task of an imported image encoder or classifier, and converts its
    outputs to those of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: Vit) -> Objective:
        """Returns a classification objective, or an image embedding objective if the model has no labels.

        Raises:
          InputError: If the `problem_type` of the folder is not single-label classification.
        """
        if model.labels and source.folder is not None:
            where = str(source.folder.path / CONFIG)
            if (kind := read_problem_type(source.folder.config, model.labels, where)) != SINGLE:
                raise InputError(f"{where}: problem_type={kind!r} of images is not supported; expected {SINGLE}")
        return ImageClassification() if model.labels else ImageEmbedding()

    def task(self, source: Source, model: Vit, objective: Any) -> Task:
        """Returns a task for labelled images if the label names are distinct, else for images without labels.

        Labels with duplicate names, as in ImageNet, can be predicted, but not read from data.
        """
        image = image_field(source, model)
        distinct = len(model.labels) > 1 and len(set(model.labels)) == len(model.labels)
        return LabelledImages(image, labels=model.labels) if distinct else ImageTask(image)

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns an empty dict, because images have no special tokens."""
        return {}

    def to_exportable_form(self, run: Run) -> Run:
        """Returns an equivalent run whose parameters a class of the transformers library can represent. For example,
        fixed position embeddings become learned ones.
        """
        return image_run(run)

    def outputs(self, model: Vit, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the logits, or hidden vectors and the pooler output if the model has no labels, keyed by their names
        in the transformers library.
        """
        if model.labels:
            return {"logits": output.logits}
        return {"last_hidden_state": output.hidden} | ({"pooler_output": output.pooled} if model.pooler else {})

    def config_for_onnx(self, model: Vit, objective: Any) -> dict[str, Any]:
        """Returns the config of the ViT class of the transformers library whose arguments and outputs match those of
        the model.
        """
        architecture = "ViTForImageClassification" if model.labels else "ViTModel"
        labels = label_fields(model.labels) if model.labels else {}
        return {"model_type": "vit", "architectures": [architecture], **image_sizes(model), **labels}


BRIDGE = ImageBridge()

FAMILY = Family(
    model_type="vit",
    architectures=("ViTForImageClassification", "ViTModel"),
    module=Vit,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("ViTModel",),
    bridge=BRIDGE,
)
