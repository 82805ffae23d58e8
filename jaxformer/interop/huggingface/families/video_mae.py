"""VideoMAE family (Tong et al. 2022): conversion from and to Hugging Face transformers."""

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
from jaxformer.layers.tubelets import tube_mask
from jaxformer.models.base import Model
from jaxformer.models.video_masked_autoencoder import NORM, VideoMaskedAutoencoder
from jaxformer.models.video_vit import VideoVit
from jaxformer.objectives.video_classification import VideoClassification
from jaxformer.objectives.video_masked_autoencoding import VideoMaskedAutoencoding
from jaxformer.runs.run import Run

NORMALISED = "norm_pix_loss"
"""Name of the config field that says whether the target pixels of the masked autoencoder are normalised. The field
belongs to the objective, not to the model.
"""
DECODER = {"width": ("hidden_size", 384), "depth": ("num_hidden_layers", 4), "heads": ("num_attention_heads", 6)}
"""Maps fields of the decoder stack to pairs: the name of the config field without its prefix `decoder_`, and its
default.
"""


def tubelet_embeddings(theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the embeddings of tubelets (patches that extend over several frames)
    to tensors of a Hugging Face checkpoint.
    """
    name = f"{theirs}.patch_embeddings.projection"
    return [
        ParamMapping("embeddings/patch/kernel", f"{name}.weight", "d n z y x -> z y x n d"),
        ParamMapping("embeddings/patch/bias", f"{name}.bias"),
    ]


def _rows() -> tuple[ParamMapping, ...]:
    """Returns the mappings from the parameters of all VideoMAE models to tensors of a Hugging Face checkpoint. The
    tensors have the names in checkpoint files, such as `attention.q_bias` for the bias of the queries.
    """
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


def _with_in_memory_name(row: ParamMapping) -> ParamMapping:
    """Returns a copy of a parameter mapping. Its tensor has the name that it has in memory in version 5 of the
    transformers library, instead of the name in checkpoint files.
    """
    name = row.theirs.replace("attention.q_bias", "attention.query.bias")
    return dataclasses.replace(row, theirs=name.replace("attention.v_bias", "attention.value.bias"))


IN_MEMORY = Table(tuple(map(_with_in_memory_name, _rows())), prefix="videomae.")
"""Mappings to the tensor names that models of version 5 of the transformers library have in memory."""
TABLE = Table(_rows(), prefix="videomae.", others=(IN_MEMORY,))


def encoder(reader: ConfigReader, prefix: str = "", **fields: Any) -> Transformer:
    """Builds the stack of Transformer blocks in the encoder or the decoder for a VideoMAE config.

    Args:
      reader: config of the model.
      prefix: `decoder_` for the decoder, empty for the encoder. It precedes the name of the config field
        `intermediate_size`.
      fields: other fields of the stack: `width`, `depth`, `heads` and `last_norm`.
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
    """Returns a dict with the number of frames per clip and per tubelet, and the encoder stack. Also marks the decoder
    fields of the config as read, so that they are not rejected as unknown.
    """
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
    """Builds the encoder or classifier for a VideoMAE config. It is a classifier if `names`, the names of the stored
    tensors, include a classification head.
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
    """Builds the masked autoencoder for a VideoMAE config."""
    del names
    sizes, transformer = _sizes(reader)
    fields = {ours: reader.integer(f"decoder_{theirs}", default) for ours, (theirs, default) in DECODER.items()}
    decoder = encoder(reader, "decoder_", **fields, last_norm=False)
    return image_model(reader, VideoMaskedAutoencoder, transformer=transformer, decoder=decoder, **sizes)


def clip_sizes(model: VideoVit | VideoMaskedAutoencoder) -> dict[str, Any]:
    """Converts the image size, the number of frames and the number of channels of a video model to config fields."""
    return {"image_size": model.image, "num_frames": model.frames, "num_channels": model.channels}


def _fields(model: VideoVit | VideoMaskedAutoencoder) -> dict[str, Any]:
    """Converts the sizes of the input and the encoder stack of a video model to config fields."""
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
    """Returns the data field that reads video clips for a model. Frames are preprocessed as the imported folder
    specifies.
    """
    preparation = read_preparation(source.home, model)
    fields = {"size": model.image, "channels": model.channels, "frames": model.frames}
    return ClipField(**fields | (preparation.field if preparation else {}))


class ClipBridge(Bridge):
    """Chooses the training objective and the data task of an imported encoder or classifier of video clips, and
    converts its outputs to those of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: VideoVit) -> Objective:
        """Returns a video classification objective.

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
        """Returns an empty dict, because clips have no special tokens."""
        return {}

    def to_exportable_form(self, run: Run) -> Run:
        """Returns the run unchanged, because its parameters already have the layout of Hugging Face checkpoints."""
        return run

    def outputs(self, model: VideoVit, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the logits, or the hidden vectors if the model has no labels, keyed by their names in the
        transformers library.
        """
        return {"logits": output.logits} if model.labels else {"last_hidden_state": output.hidden}

    def config_for_onnx(self, model: VideoVit, objective: Any) -> dict[str, Any]:
        """Returns the config of the VideoMAE class of the transformers library whose arguments and outputs match those
        of the model.
        """
        architecture = "VideoMAEForVideoClassification" if model.labels else "VideoMAEModel"
        labels = label_fields(model.labels) if model.labels else {}
        sizes = {**image_sizes(model), **clip_sizes(model), "tubelet_size": model.tubelet}
        return {"model_type": "videomae", "architectures": [architecture], **sizes, **labels}


class AutoencoderBridge(ClipBridge):
    """Chooses the training objective and the data task of an imported masked autoencoder of video clips. Its class in
    the transformers library takes a mask of the hidden tubelets (patches that extend over several frames) instead of
    the random numbers that select them.
    """

    def call_arguments(self, model: VideoMaskedAutoencoder, arrays: Arrays) -> dict[str, np.ndarray]:
        """Converts the inputs of the JAX model to the arguments of the corresponding class of the transformers library.
        The random number of each patch is replaced by a boolean mask of the hidden tubelets, `bool_masked_pos`.
        """
        found = super().call_arguments(model, arrays)
        noise = found.pop("noise")
        return found | {"bool_masked_pos": tube_mask(noise, model.visible, model.times)}

    def objective(self, source: Source, model: VideoMaskedAutoencoder) -> Objective:
        """Returns the objective for predicting the pixels of masked tubes (the same patch in all frames). The pixels
        are normalised if the config of the folder says so.
        """
        said = {} if source.folder is None else source.folder.config
        return VideoMaskedAutoencoding(bool(said.get(NORMALISED, True)))

    def task(self, source: Source, model: VideoMaskedAutoencoder, objective: Any) -> Task:
        """Returns a task of clips in which random tubes (the same patch in all frames) are masked."""
        return MaskedTubes(clip_field(source, model), model.patch)

    def outputs(self, model: VideoMaskedAutoencoder, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the predicted pixels of the masked tubelets under the name `logits`, as in the transformers
        library.
        """
        return {"logits": output.pixels}

    def config_for_onnx(self, model: VideoMaskedAutoencoder, objective: Any) -> dict[str, Any]:
        """Returns the config of the pretraining class of VideoMAE in the transformers library, whose outputs match
        those of the model.
        """
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
