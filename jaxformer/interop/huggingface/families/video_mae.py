"""VideoMAE family (Tong et al. 2022): conversion from and to transformers."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from jaxformer.config import Objective
from jaxformer.data.fields.clip import ClipField
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.clips import ClipTask, LabelledClips, MaskedTubes
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Arrays, Bridge, Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, Family, stack
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.families.vit import blocks, encoder_fields, image_model, image_sizes
from jaxformer.interop.huggingface.folders import CONFIG
from jaxformer.interop.huggingface.images import read_preparation
from jaxformer.interop.huggingface.labels import SINGLE, label_fields, read_labels, read_problem_type
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.layers.tubelets import hidden_tubes
from jaxformer.models.base import Model
from jaxformer.models.video_masked_autoencoder import NORM, VideoMaskedAutoencoder
from jaxformer.models.video_vit import VideoVit
from jaxformer.objectives.video_classification import VideoClassification
from jaxformer.objectives.video_masked_autoencoding import VideoMaskedAutoencoding
from jaxformer.runs.run import Run

NORMALISED = "norm_pix_loss"
"""Name of the config field that says whether target pixels are normalised. It is a setting of the objective."""
DECODER = {"width": ("hidden_size", 384), "depth": ("num_hidden_layers", 4), "heads": ("num_attention_heads", 6)}
"""Maps fields of the decoder stack to names in the config, without their prefix, and to their defaults."""


def tubelet_embeddings(theirs: str) -> list[ParamMapping]:
    """Returns the parameter mappings of the embeddings of tubelets."""
    name = f"{theirs}.patch_embeddings.projection"
    return [
        ParamMapping("embeddings/patch/kernel", f"{name}.weight", "d n z y x -> z y x n d"),
        ParamMapping("embeddings/patch/bias", f"{name}.bias"),
    ]


def _rows() -> tuple[ParamMapping, ...]:
    """Returns the parameter mappings of all classes. The biases of queries and values have the names of files."""
    rows = (
        *tubelet_embeddings("videomae.embeddings"),
        *blocks("transformer/blocks", "videomae.encoder.layer.{l}"),
        *norm("transformer/norm", "videomae.layernorm"),
        *norm("head_norm", "fc_norm"),
        *linear("head", "classifier"),
        *linear("decoder_embedding", "encoder_to_decoder"),
        ParamMapping("mask_token", "mask_token", "1 1 d -> d"),
        *blocks("decoder/blocks", "decoder.decoder_layers.{l}"),
        *norm("decoder_norm", "decoder.norm"),
        *linear("pixels", "decoder.head"),
    )
    names = {"attention.query.bias": "attention.q_bias", "attention.value.bias": "attention.v_bias"}
    for theirs, stored in names.items():
        rows = tuple(dataclasses.replace(row, theirs=row.theirs.replace(theirs, stored)) for row in rows)
    return rows


def _loaded(row: ParamMapping) -> ParamMapping:
    """Returns a row with the tensor name that the classes of transformers 5 have in memory."""
    name = row.theirs.replace("attention.q_bias", "attention.query.bias")
    return dataclasses.replace(row, theirs=name.replace("attention.v_bias", "attention.value.bias"))


TABLE = Table(_rows(), prefix="videomae.", others=(Table(tuple(map(_loaded, _rows())), prefix="videomae."),))


def encoder(reader: ConfigReader, prefix: str = "", **fields: Any) -> Transformer:
    """Builds the encoder stack of a VideoMAE config, or the decoder stack.

    Args:
      reader: config.
      prefix: `decoder_` for the decoder.
      fields: width, depth and heads, and whether there is a last norm.
    """
    inner = reader.integer(f"{prefix}intermediate_size", 1536 if prefix else 3072)
    return stack(
        reader,
        attention=Attention(key_bias=False),
        mlp=Mlp(inner, reader.choice("hidden_act", ACTIVATIONS, "gelu")),
        norm=LayerNorm(reader.number("layer_norm_eps", 1e-12)),
        dropout=reader.rate("hidden_dropout_prob"),
        attention_dropout=reader.rate("attention_probs_dropout_prob"),
        **fields,
    )


def _sizes(reader: ConfigReader) -> tuple[dict[str, int], Transformer]:
    """Reads the sizes of clips and the encoder stack. Reads all fields of the config, also those of the decoder."""
    reader.must("qv_bias", True)
    reader.get(NORMALISED)
    encoded = encoder(
        reader,
        width=reader.integer("hidden_size", 768),
        depth=reader.integer("num_hidden_layers", 12),
        heads=reader.integer("num_attention_heads", 12),
        last_norm=not reader.flag("use_mean_pooling", True),
    )
    for name in (*(theirs for theirs, _ in DECODER.values()), "intermediate_size"):
        reader.get(f"decoder_{name}")
    return {"frames": reader.integer("num_frames", 16), "tubelet": reader.integer("tubelet_size", 2)}, encoded


def build(reader: ConfigReader, names: Collection[str]) -> VideoVit:
    """Builds the encoder or classifier of a config. It has a head if `names`, the names of the stored tensors, include
    one.
    """
    sizes, transformer = _sizes(reader)
    labels = read_labels(reader) if "classifier.weight" in names else ()
    mean_pooling = not transformer.last_norm
    return image_model(
        reader,
        VideoVit,
        transformer=transformer,
        labels=labels,
        position_embedding="sinusoidal",
        class_token=False,
        pooling="mean" if mean_pooling else "first",
        pooled_norm=LayerNorm(NORM) if mean_pooling and labels else None,
        **sizes,
    )


def build_autoencoder(reader: ConfigReader, names: Collection[str]) -> VideoMaskedAutoencoder:
    """Builds the masked autoencoder of a config."""
    del names
    sizes, transformer = _sizes(reader)
    fields = {ours: reader.integer(f"decoder_{theirs}", default) for ours, (theirs, default) in DECODER.items()}
    decoder = encoder(reader, "decoder_", **fields, last_norm=False)
    return image_model(reader, VideoMaskedAutoencoder, transformer=transformer, decoder=decoder, **sizes)


def clip_sizes(model: VideoVit | VideoMaskedAutoencoder) -> dict[str, Any]:
    """Converts the sizes of the clips of a model to config fields."""
    return {"image_size": model.image, "num_frames": model.frames, "num_channels": model.channels}


def _fields(model: VideoVit | VideoMaskedAutoencoder) -> dict[str, Any]:
    """Converts the sizes and the encoder stack of a model to config fields."""
    return {
        **clip_sizes(model),
        "patch_size": model.patch,
        "tubelet_size": model.tubelet,
        "qv_bias": True,
        "use_mean_pooling": not model.transformer.last_norm,
        **encoder_fields(model.transformer),
    }


def describe(model: VideoVit) -> dict[str, Any]:
    """Converts the model to a VideoMAE config."""
    head = label_fields(model.labels) if model.labels else {}
    architecture = "VideoMAEForVideoClassification" if model.labels else "VideoMAEModel"
    return {"architectures": [architecture], **head, **_fields(model)}


def describe_autoencoder(model: VideoMaskedAutoencoder) -> dict[str, Any]:
    """Converts the masked autoencoder to a VideoMAE config."""
    fields = encoder_fields(model.decoder)
    names = (*(theirs for theirs, _ in DECODER.values()), "intermediate_size")
    decoder = {f"decoder_{name}": fields[name] for name in names}
    return {"architectures": ["VideoMAEForPreTraining"], **_fields(model), **decoder}


def clip_field(source: Source, model: Any) -> ClipField:
    """Returns a clip field that prepares frames as the imported folder specifies."""
    preparation = read_preparation(source.home, model)
    fields = {"size": model.image, "channels": model.channels, "frames": model.frames}
    return ClipField(**fields | (preparation.field if preparation else {}))


class ClipBridge(Bridge):
    """Bridge for encoders and classifiers of clips: objective and task of imported models, and the outputs of their
    transformers classes.
    """

    def objective(self, source: Source, model: VideoVit) -> Objective:
        """Returns a classification objective.

        Raises:
          InputError: If the model has no labels, or the `problem_type` of the folder is not single-label
            classification.
        """
        if not model.labels:
            return super().objective(source, model)
        if source.folder is not None:
            where = str(source.folder.path / CONFIG)
            if (kind := read_problem_type(source.folder.config, model.labels, where)) != SINGLE:
                raise InputError(f"{where}: problem_type={kind!r} of clips is not supported; expected {SINGLE}")
        return VideoClassification()

    def task(self, source: Source, model: VideoVit, objective: Any) -> Task:
        """Returns a task for labelled clips if the label names are distinct, else for clips without labels."""
        clip = clip_field(source, model)
        distinct = len(set(model.labels)) == len(model.labels)
        return LabelledClips(clip, labels=model.labels) if distinct else ClipTask(clip)

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns no fields, because clips have no special tokens."""
        return {}

    def conventional(self, run: Run) -> Run:
        """Returns the run unchanged, because its parameters already have the layout of transformers."""
        return run

    def outputs(self, model: VideoVit, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns logits, or hidden vectors if the model has no labels."""
        return {"logits": output.logits} if model.labels else {"last_hidden_state": output.hidden}

    def nearest_config(self, model: VideoVit, objective: Any) -> dict[str, Any]:
        """Returns the config of a VideoMAE in transformers, which has the same arguments and outputs."""
        architecture = "VideoMAEForVideoClassification" if model.labels else "VideoMAEModel"
        labels = label_fields(model.labels) if model.labels else {}
        sizes = {**image_sizes(model), **clip_sizes(model), "tubelet_size": model.tubelet}
        return {"model_type": "videomae", "architectures": [architecture], **sizes, **labels}


class AutoencoderBridge(ClipBridge):
    """Bridge for masked autoencoders of clips. transformers takes a mask of tubelets instead of random numbers."""

    def call_arguments(self, model: VideoMaskedAutoencoder, arrays: Arrays) -> dict[str, np.ndarray]:
        """Converts inputs to the arguments of the transformers class, with the mask of the tubelets."""
        found = super().call_arguments(model, arrays)
        noise = found.pop("noise")
        return found | {"bool_masked_pos": hidden_tubes(noise, model.visible, model.times)}

    def objective(self, source: Source, model: VideoMaskedAutoencoder) -> Objective:
        """Returns the objective for predicting the pixels of masked tubes."""
        said = {} if source.folder is None else source.folder.config
        return VideoMaskedAutoencoding(bool(said.get(NORMALISED, True)))

    def task(self, source: Source, model: VideoMaskedAutoencoder, objective: Any) -> Task:
        """Returns a task of clips with masked tubes."""
        return MaskedTubes(clip_field(source, model), model.patch)

    def outputs(self, model: VideoMaskedAutoencoder, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the predicted pixels of the masked tubelets."""
        return {"logits": output.pixels}

    def nearest_config(self, model: VideoMaskedAutoencoder, objective: Any) -> dict[str, Any]:
        """Returns the config of a VideoMAE for pretraining in transformers, which has the same outputs."""
        sizes = {**image_sizes(model), **clip_sizes(model), "tubelet_size": model.tubelet}
        return {"model_type": "videomae", "architectures": ["VideoMAEForPreTraining"], **sizes}


AUTO_CLASSES = {"ForVideoClassification": ("AutoModelForVideoClassification", "video-classification")}
FAMILY = Family(
    model_type="videomae",
    architectures=("VideoMAEForVideoClassification", "VideoMAEModel"),
    module=VideoVit,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("VideoMAEModel",),
    bridge=ClipBridge(),
    auto_classes=AUTO_CLASSES,
)
AUTOENCODER = Family(
    model_type="videomae",
    architectures=("VideoMAEForPreTraining",),
    module=VideoMaskedAutoencoder,
    build=build_autoencoder,
    describe=describe_autoencoder,
    table=TABLE,
    bridge=AutoencoderBridge(),
)
