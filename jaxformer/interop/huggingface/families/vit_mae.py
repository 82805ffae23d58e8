"""Masked autoencoder family (He et al. 2022): conversion from and to Hugging Face transformers."""

import dataclasses
from collections.abc import Collection
from typing import Any

import jax
import numpy as np

from jaxformer.config import Objective
from jaxformer.data.tasks.base import Task
from jaxformer.data.tasks.images import MaskedPatches
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, Family, stack
from jaxformer.interop.huggingface.families.rows import linear, norm
from jaxformer.interop.huggingface.families.vit import (
    ImageBridge,
    blocks,
    embeddings,
    encoder,
    encoder_fields,
    geometry,
    image_field,
    image_model,
    image_sizes,
)
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import sinusoidal_2d
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.objectives.masked_autoencoding import MaskedAutoencoding
from jaxformer.runs.run import Run


def positions(shape: tuple[int, ...]) -> np.ndarray:
    """Computes fixed position embeddings of the given shape, [1, 1 + patches, embed]: zeros for the class token,
    followed by sinusoids.
    """
    _, count, width = shape
    side = round((count - 1) ** 0.5)
    return np.concatenate([np.zeros((1, width)), np.asarray(sinusoidal_2d(side, side, width))])[None]


def _decoder_blocks() -> list[ParamMapping]:
    """Returns the mappings from the parameters of the decoder blocks to tensors of a Hugging Face checkpoint.

    Each tensor has two possible names: that in published checkpoints, and that in version 5 of the transformers
    library.
    """
    return [
        dataclasses.replace(row, copies=(row.theirs.replace("decoder_layers", "decoder_encoder.layer"),))
        for row in blocks("decoder/blocks", "decoder.decoder_layers.{l}")
    ]


TABLE = Table(
    (
        *embeddings("vit.embeddings"),
        *blocks("transformer/blocks", "vit.encoder.layer.{l}"),
        *norm("transformer/norm", "vit.layernorm"),
        *linear("decoder_embedding", "decoder.decoder_embed"),
        ParamMapping("mask_token", "decoder.mask_token", "1 1 d -> d"),
        *_decoder_blocks(),
        *norm("decoder/norm", "decoder.decoder_norm"),
        *linear("pixels", "decoder.decoder_pred"),
    ),
    known={"vit.embeddings.position_embeddings": positions, "decoder.decoder_pos_embed": positions},
    prefix="vit.",
)


def build(reader: ConfigReader, names: Collection[str]) -> MaskedAutoencoder:
    """Builds the model for a ViTMAE config. The model has a decoder if `names`, the names of the stored tensors,
    include one.
    """
    reader.get("norm_pix_loss")  # A setting of the objective.
    transformer, decoder = encoder(reader), None
    sizes = {"width": ("hidden_size", 512), "depth": ("num_hidden_layers", 8), "heads": ("num_attention_heads", 16)}
    fields = {ours: reader.integer(f"decoder_{theirs}", default) for ours, (theirs, default) in sizes.items()}
    inner = reader.integer("decoder_intermediate_size", 2048)
    if "decoder.decoder_embed.weight" in names:
        decoder = stack(
            reader,
            **fields,
            mlp=Mlp(inner, reader.choice("hidden_act", ACTIVATIONS, "gelu")),
            norm=LayerNorm(reader.number("layer_norm_eps", 1e-12)),
            dropout=reader.rate("hidden_dropout_prob"),
            attention_dropout=reader.rate("attention_probs_dropout_prob"),
        )
    rate = reader.number("mask_ratio", 0.75)
    return image_model(reader, MaskedAutoencoder, transformer=transformer, decoder=decoder, mask_rate=rate)


def describe(model: MaskedAutoencoder) -> dict[str, Any]:
    """Converts the model to a ViTMAE config."""
    config = {
        "architectures": ["ViTMAEModel" if model.decoder is None else "ViTMAEForPreTraining"],
        "mask_ratio": model.mask_rate,
        **geometry(model),
        **encoder_fields(model.transformer),
    }
    if model.decoder is not None:
        fields = encoder_fields(model.decoder)
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
        config |= {f"decoder_{name}": fields[name] for name in sizes}
    return config


def constants(model: MaskedAutoencoder) -> dict[str, np.ndarray]:
    """Computes the fixed position embeddings of the encoder and the decoder, which Hugging Face checkpoints store.
    Returns them keyed by tensor name.
    """
    decoder, count = model.decoder, 1 + model.patches
    prefix = "" if decoder is None else "vit."
    found = {f"{prefix}embeddings.position_embeddings": positions((1, count, model.transformer.width))}
    return found if decoder is None else found | {"decoder.decoder_pos_embed": positions((1, count, decoder.width))}


class MaskedAutoencoderBridge(ImageBridge):
    """Chooses the training objective and the data task of an imported masked autoencoder, and converts its outputs to
    those of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: MaskedAutoencoder) -> Objective:
        """Returns the objective for predicting the pixels of masked patches."""
        return MaskedAutoencoding()

    def task(self, source: Source, model: MaskedAutoencoder, objective: Any) -> Task:
        """Returns a task of images in which random patches are masked. The images are preprocessed as the imported
        folder specifies.
        """
        return MaskedPatches(image_field(source, model), model.patch)

    def to_exportable_form(self, run: Run) -> Run:
        """Returns the run unchanged, because its parameters already have the layout of Hugging Face checkpoints."""
        return run

    def outputs(self, model: MaskedAutoencoder, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the predicted pixels (or hidden vectors if the model has no decoder) and the mask of patches, keyed
        by their names in the transformers library.
        """
        found = {"last_hidden_state": output.hidden} if output.pixels is None else {"logits": output.pixels}
        return found | {"mask": output.masked}

    def config_for_onnx(self, model: MaskedAutoencoder, objective: Any) -> dict[str, Any]:
        """Returns the config of the ViTMAE class of the transformers library whose arguments and outputs match those of
        the model.
        """
        architecture = "ViTMAEModel" if model.decoder is None else "ViTMAEForPreTraining"
        sizes = {**image_sizes(model), "mask_ratio": model.mask_rate}
        return {"model_type": "vit_mae", "architectures": [architecture], **sizes}


FAMILY = Family(
    model_type="vit_mae",
    architectures=("ViTMAEForPreTraining", "ViTMAEModel"),
    module=MaskedAutoencoder,
    build=build,
    describe=describe,
    table=TABLE,
    headless_architectures=("ViTMAEModel",),
    constants=constants,
    bridge=MaskedAutoencoderBridge(),
)
