"""CLIP family (Radford et al. 2021) and SigLIP family (Zhai et al. 2023): conversion from and to Hugging Face
transformers.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import jax

from jaxformer.data.fields.text import TextField
from jaxformer.data.tasks.image_text import ImageTextPairs
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.bridge import Bridge, Source
from jaxformer.interop.huggingface.families.family import ACTIVATIONS, MARKS, NAMES, Family, stack
from jaxformer.interop.huggingface.families.rows import attention, linear, norm
from jaxformer.interop.huggingface.families.vit import image_field
from jaxformer.interop.huggingface.table import ParamMapping, Table
from jaxformer.interop.huggingface.text_forms import replaced, without_unused_ids
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import Model
from jaxformer.models.clip import Clip, ImageTower, TextTower
from jaxformer.objectives.image_text import ImageTextContrastive
from jaxformer.runs.run import Run

HIGHEST = 2
"""Value of `eos_token_id` in old CLIP configs. For this value, the transformers library uses the token with the highest
id as the end token of a text.
"""
POOLED = ("query", "key", "value")


def tower(ours: str, theirs: str, last_norm: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of the Transformer blocks and the last norm in an image or text encoder
    to tensors of a Hugging Face checkpoint.

    Args:
      ours: Parameter path of the encoder.
      theirs: Prefix of the encoder's tensor names in Hugging Face checkpoints.
      last_norm: Name of the tensor of the last norm.
    """
    layer, block = f"{theirs}.encoder.layers.{{l}}", f"{ours}/transformer/blocks"
    names = (f"{layer}.self_attn.{part}_proj" for part in ("q", "k", "v", "out"))
    return [
        *attention(f"{block}/attention", *names),
        *norm(f"{block}/attention_norm", f"{layer}.layer_norm1"),
        *norm(f"{block}/mlp_norm", f"{layer}.layer_norm2"),
        *linear(f"{block}/mlp/up", f"{layer}.mlp.fc1"),
        *linear(f"{block}/mlp/down", f"{layer}.mlp.fc2"),
        *norm(f"{ours}/transformer/norm", f"{theirs}.{last_norm}"),
    ]


def pooling_head(ours: str, theirs: str) -> list[ParamMapping]:
    """Returns the mappings from the parameters of SigLIP's attention pooling to tensors of a Hugging Face checkpoint.
    The checkpoint stores the query, key and value kernels as one tensor.
    """
    kernels, biases = (tuple(f"{ours}/attention/{part}/{kind}" for part in POOLED) for kind in ("kernel", "bias"))
    return [
        ParamMapping(f"{ours}/query", f"{theirs}.probe", "1 1 d -> d"),
        ParamMapping(kernels, f"{theirs}.attention.in_proj_weight", "(n h k) d -> n d h k"),
        ParamMapping(biases, f"{theirs}.attention.in_proj_bias", "(n h k) -> n h k"),
        *linear(f"{ours}/attention/output", f"{theirs}.attention.out_proj", "d (h k) -> h k d"),
        *norm(f"{ours}/norm", f"{theirs}.layernorm"),
        *linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1"),
        *linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2"),
    ]


PATCH = "vision_model.embeddings.patch_embedding"
TOWERS = (
    ParamMapping("text/embeddings/token", "text_model.embeddings.token_embedding.weight"),
    ParamMapping("text/embeddings/position", "text_model.embeddings.position_embedding.weight"),
    *tower("text", "text_model", "final_layer_norm"),
    ParamMapping("vision/embeddings/class_token", "vision_model.embeddings.class_embedding"),
    ParamMapping("vision/embeddings/position", "vision_model.embeddings.position_embedding.weight"),
    ParamMapping("vision/embeddings/patch/kernel", f"{PATCH}.weight", "d n y x -> y x n d"),
    ParamMapping("vision/embeddings/patch/bias", f"{PATCH}.bias"),
    *norm("vision/embedding_norm", "vision_model.pre_layrnorm"),
    *tower("vision", "vision_model", "post_layernorm"),
    *pooling_head("vision/attention_pooling", "vision_model.head"),
)
KNOWN = {f"{name}_model.embeddings.position_ids": "0, 1, 2, ..." for name in ("text", "vision")}
CLIP_TABLE = Table(
    (
        *TOWERS,
        ParamMapping("image_projection/kernel", "visual_projection.weight", "f d -> d f"),
        ParamMapping("text_projection/kernel", "text_projection.weight", "f d -> d f"),
        ParamMapping("log_scale", "logit_scale"),
    ),
    known=KNOWN,
)
SIGLIP_TABLE = Table(
    (
        *TOWERS,
        *linear("text_projection", "text_model.head"),
        ParamMapping("log_scale", "logit_scale", "1 -> "),
        ParamMapping("bias", "logit_bias", "1 -> "),
    ),
    known=KNOWN,
)


def build_clip(reader: ConfigReader, names: Collection[str]) -> Clip:
    """Builds the model for a CLIPConfig."""
    del names
    text_reader, vision_reader = _nested(reader, "text_config"), _nested(reader, "vision_config")
    width = reader.integer("projection_dim", 512)
    for nested in (text_reader, vision_reader):
        nested.get("projection_dim")  # Only used by the towers as separate models.
    end = text_reader.get("eos_token_id", 49_407)
    defaults = {"width": 512, "inner": 2048, "heads": 8, "activation": "quick_gelu", "epsilon": 1e-5}
    text = _text_fields(text_reader, defaults, vocab=49_408, length=77)
    defaults |= {"width": 768, "inner": 3072, "heads": 12}
    vision = _vision_fields(vision_reader, defaults, patch=32)
    scale = math.exp(reader.number("logit_scale_init_value", 2.6592))

    def make() -> Clip:
        pooling, end_id = ("highest", None) if end == HIGHEST else ("end", end)
        return Clip(ImageTower(**vision), TextTower(**text, causal=True, pooling=pooling, end_id=end_id), width, scale)

    model = _made(reader, make)
    return _finished(model, reader, text_reader, vision_reader)


def build_siglip(reader: ConfigReader, names: Collection[str]) -> Clip:
    """Builds the model for a SiglipConfig."""
    del names
    text_reader, vision_reader = _nested(reader, "text_config"), _nested(reader, "vision_config")
    defaults = {"width": 768, "inner": 3072, "heads": 12, "activation": "gelu_pytorch_tanh", "epsilon": 1e-6}
    pad_id = text_reader.get("pad_token_id", 1)
    text = _text_fields(text_reader, defaults, vocab=32_000, length=64)
    vision = _vision_fields(vision_reader, defaults, patch=16)
    vision_reader.must("vision_use_head", True)
    text_reader.must("projection_size", vision["transformer"].width)

    def make() -> Clip:
        images = ImageTower(**vision, pooling="attention", embedding_norm=False, patch_bias=True)
        return Clip(images, TextTower(**text, causal=False, pad_id=pad_id), None, 10.0, -10.0)

    model = _made(reader, make)
    return _finished(model, reader, text_reader, vision_reader)


def _nested(reader: ConfigReader, name: str) -> ConfigReader:
    """Returns a reader for the config of one encoder, which is nested in the config of the model. Old files contain the
    nested config twice; the field with the suffix `_dict` takes precedence.
    """
    values = {**reader.get(name, {}), **reader.get(f"{name}_dict", {})}
    return ConfigReader(values, f"{reader.where}: {name}")


def _made(reader: ConfigReader, make: Any) -> Clip:
    try:
        return make()
    except InputError as error:
        raise InputError(f"{reader.where}: {error}") from error


def _finished(model: Clip, reader: ConfigReader, *nested: ConfigReader) -> Clip:
    for one in nested:
        one.finish()
        reader.notes += one.notes
    return model


def _stack(reader: ConfigReader, defaults: Mapping[str, Any]) -> Transformer:
    reader.get("dropout")  # Never used.
    return stack(
        reader,
        width=reader.integer("hidden_size", defaults["width"]),
        depth=reader.integer("num_hidden_layers", 12),
        heads=reader.integer("num_attention_heads", defaults["heads"]),
        mlp=Mlp(
            reader.integer("intermediate_size", defaults["inner"]),
            reader.choice("hidden_act", ACTIVATIONS, defaults["activation"]),
        ),
        norm=LayerNorm(reader.number("layer_norm_eps", defaults["epsilon"])),
        dropout=0.0,
        attention_dropout=reader.rate("attention_dropout"),
    )


def _text_fields(reader: ConfigReader, defaults: Mapping[str, Any], vocab: int, length: int) -> dict[str, Any]:
    return {
        "transformer": _stack(reader, defaults),
        "vocab": reader.integer("vocab_size", vocab),
        "max_length": reader.integer("max_position_embeddings", length),
    }


def _vision_fields(reader: ConfigReader, defaults: Mapping[str, Any], patch: int) -> dict[str, Any]:
    channels = reader.integer("num_channels", 3)
    pixels = {"mean": (0.5,), "std": (0.5,)} if channels != 3 else {}
    return {
        "transformer": _stack(reader, defaults),
        "image": reader.integer("image_size", 224),
        "patch": reader.integer("patch_size", patch),
        "channels": channels,
        **pixels,
    }


def describe_clip(model: Clip) -> dict[str, Any]:
    """Converts the model to a CLIPConfig."""
    end = model.text.end_id if model.text.pooling == "end" else HIGHEST
    text = {"projection_dim": model.width, "eos_token_id": end, "bos_token_id": None, "pad_token_id": None}
    return {
        "architectures": ["CLIPModel"],
        "projection_dim": model.width,
        "logit_scale_init_value": math.log(model.init_scale),
        "text_config": {"model_type": "clip_text_model", **text, **_text_sizes(model.text)},
        "vision_config": {
            "model_type": "clip_vision_model",
            "projection_dim": model.width,
            **_vision_sizes(model.vision),
        },
    }


def describe_siglip(model: Clip) -> dict[str, Any]:
    """Converts the model to a SiglipConfig."""
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": model.text.pad_id}
    text = {"projection_size": model.vision.transformer.width, **tokens}
    return {
        "architectures": ["SiglipModel"],
        "text_config": {"model_type": "siglip_text_model", **text, **_text_sizes(model.text)},
        "vision_config": {"model_type": "siglip_vision_model", **_vision_sizes(model.vision)},
    }


def _sizes(config: Transformer) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp.inner(config.width),
        "hidden_act": NAMES[config.mlp.activation],
        "layer_norm_eps": config.norm.epsilon,
        "attention_dropout": config.attention_dropout,
    }


def _text_sizes(text: TextTower) -> dict[str, Any]:
    return {"vocab_size": text.vocab, "max_position_embeddings": text.max_length, **_sizes(text.transformer)}


def _vision_sizes(vision: ImageTower) -> dict[str, Any]:
    geometry = {"image_size": vision.image, "patch_size": vision.patch, "num_channels": vision.channels}
    return {**geometry, **_sizes(vision.transformer)}


def with_end(model: Model, end_id: int) -> Model:
    """Returns a copy of a CLIP model whose text vector is read at the first token with the id `end_id`. This only suits
    texts that end with this token.
    """
    return dataclasses.replace(model, text=dataclasses.replace(model.text, pooling="end", end_id=end_id))


class ClipBridge(Bridge):
    """Chooses the training objective and the data task of an imported model of images and texts, and converts its
    outputs to those of the corresponding class of the transformers library.
    """

    def objective(self, source: Source, model: Clip) -> ImageTextContrastive:
        """Returns the contrastive objective, with the sigmoid loss if the model adds a bias to image–text scores, and
        otherwise with the softmax loss.
        """
        return ImageTextContrastive("softmax" if model.init_bias is None else "sigmoid")

    def task(self, source: Source, model: Clip, objective: Any) -> ImageTextPairs:
        """Returns a task of image–text pairs, whose images are preprocessed as the imported folder specifies."""
        return ImageTextPairs(image_field(source, model.vision), TextField(length=model.text.max_length))

    def special_tokens(self, model: Model, tokens: Mapping[str, int | None]) -> dict[str, int | None]:
        """Returns an empty dict, because special tokens are part of the text encoder's config."""
        return {}

    def to_exportable_form(self, run: Run) -> Run:
        """Returns an equivalent run whose text encoder finds the end token of a text by its id, as in the transformers
        library, and not as the last token of the text.
        """
        run = without_unused_ids(run)
        if run.model.text.pooling != "last" or run.model.text.pad_id is not None:
            return run
        ending = run.require_tokenizer().template("encoder").single[-1].content
        model = with_end(run.model, int(ending))
        return replaced(run, model, run.params, run.tokenizer)

    def outputs(self, model: Clip, output: Any, objective: Any = None) -> dict[str, jax.Array]:
        """Returns the image–text scores, the image vectors and the text vectors, keyed by their names in the
        transformers library.
        """
        return {
            "logits_per_image": output.logits,
            "image_embeds": output.image_vectors,
            "text_embeds": output.text_vectors,
        }


BRIDGE = ClipBridge()
AUTO = ("AutoModelForZeroShotImageClassification", "zero-shot-image-classification")
CLIP = Family(
    model_type="clip",
    architectures=("CLIPModel",),
    module=Clip,
    build=build_clip,
    describe=describe_clip,
    table=CLIP_TABLE,
    special_tokens=(*MARKS, "bos", "eos"),
    layout="encoder",
    bridge=BRIDGE,
    auto_classes={"CLIPModel": AUTO},
)
SIGLIP = dataclasses.replace(
    CLIP,
    model_type="siglip",
    architectures=("SiglipModel",),
    build=build_siglip,
    describe=describe_siglip,
    table=SIGLIP_TABLE,
    auto_classes={"SiglipModel": AUTO},
)
