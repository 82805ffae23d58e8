"""Opens Whisper models that were converted for the inference library CTranslate2, such as those of faster-whisper, as
if they were Hugging Face folders.

The tensors get the names that they have in the transformers library. CTranslate2 stores the kernels of queries, keys
and values as one tensor, whose parts are read when they are needed.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.ctranslate2_file import open_ctranslate2
from jaxformer.interop.formats.stored import LazyTensor
from jaxformer.interop.huggingface.folders import CONFIG, READERS, Folder, read_json

WEIGHTS = "model.bin"
MULTILINGUAL = 51_865
"""Minimum vocabulary size of a multilingual Whisper model. English-only models have fewer tokens."""
NORMS = {"self_attention": "self_attn_layer_norm", "attention": "encoder_attn_layer_norm", "ffn": "final_layer_norm"}
"""Maps names of sublayers in CTranslate2 to the names of their layer norms in the transformers library."""


def is_ctranslate2(path: Path) -> bool:
    """Returns whether a folder contains weights for CTranslate2, and no weights for the transformers library."""
    return (path / WEIGHTS).is_file() and not any((path / name).is_file() for name in READERS)


def open_whisper(path: Path) -> Folder:
    """Opens the Whisper model in a folder with a model.bin of CTranslate2. Returns it as a Hugging Face folder, with
    the configs and tensor names of the transformers library.

    Raises:
      InputError: If model.bin does not contain a Whisper model, or its weights are quantized.
    """
    kind, tensors = open_ctranslate2(path / WEIGHTS)
    if kind != "WhisperSpec":
        raise InputError(f"{path / WEIGHTS}: a {kind} for CTranslate2 is not supported; expected a WhisperSpec")
    if found := next((name for name, one in tensors.items() if one.dtype == np.int8 and len(one.shape) > 1), None):
        raise InputError(f"{path / WEIGHTS}: {found} is quantized; expected a model in float16, bfloat16 or float32")
    said = read_json(path / CONFIG)
    return Folder(path, _config(tensors), _generation(said, tensors), _renamed(tensors))


def _config(tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Returns the content of the config.json that the model has in the transformers library. Sizes are read from the
    tensors, which are keyed by their CTranslate2 names.
    """
    vocab, width = tensors["decoder/embeddings/weight"].shape
    sides = {}
    for side in ("encoder", "decoder"):
        sides[f"{side}_layers"] = sum(name.endswith("/ffn/linear_0/bias") for name in tensors if name.startswith(side))
        sides[f"{side}_attention_heads"] = int(tensors[f"{side}/num_heads"].read())
        sides[f"{side}_ffn_dim"] = tensors[f"{side}/layer_0/ffn/linear_0/bias"].shape[0]
    end = 50_257 if vocab >= MULTILINGUAL else 50_256
    return sides | {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "torch_dtype": str(tensors["decoder/embeddings/weight"].dtype),
        "vocab_size": vocab,
        "d_model": width,
        "num_mel_bins": tensors["encoder/conv1/weight"].shape[1],
        "max_source_positions": tensors["encoder/position_encodings/encodings"].shape[0],
        "max_target_positions": tensors["decoder/position_encodings/encodings"].shape[0],
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": end + 1,
    }


def _generation(said: Mapping[str, Any], tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Returns the content of the generation_config.json that the model has in the transformers library. `said` is the
    content of the config.json of CTranslate2.
    """
    length = tensors["decoder/position_encodings/encodings"].shape[0]
    found = {
        "alignment_heads": said.get("alignment_heads"),
        "suppress_tokens": said.get("suppress_ids"),
        "begin_suppress_tokens": said.get("suppress_ids_begin"),
        "is_multilingual": tensors["decoder/embeddings/weight"].shape[0] >= MULTILINGUAL,
        "max_initial_timestamp_index": 50,
        "max_length": length,
    }
    return {name: value for name, value in found.items() if value is not None}


def _renamed(tensors: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Renames the tensors of the model from their CTranslate2 names to their names in the transformers library. Tensors
    that contain several kernels or biases are divided.
    """
    found = {
        "model.decoder.embed_tokens.weight": tensors["decoder/embeddings/weight"],
        "model.decoder.embed_positions.weight": tensors["decoder/position_encodings/encodings"],
        "model.encoder.embed_positions.weight": tensors["encoder/position_encodings/encodings"],
    }
    for name, tensor in tensors.items():
        side, *parts = name.split("/")
        if len(parts) == 2 and parts[0] in ("conv1", "conv2"):
            found[f"model.{side}.{parts[0]}.{parts[1]}"] = tensor
        elif parts[0] == "layer_norm":
            found[f"model.{side}.layer_norm.{_norm(parts[1])}"] = tensor
        elif parts[0].startswith("layer_"):
            layer = f"model.{side}.layers.{parts[0].removeprefix('layer_')}"
            found |= {f"{layer}.{end}": one for end, one in _of_layer(parts[1:], tensor).items()}
    return found


def _of_layer(parts: list[str], tensor: LazyTensor) -> dict[str, LazyTensor]:
    """Converts one CTranslate2 tensor of a layer to tensors of the transformers library. Returns several if it contains
    the kernels or biases of queries, keys and values. They are keyed by their names within the layer, such as
    `self_attn.q_proj.weight`.
    """
    part, inner, kind = parts
    if inner == "layer_norm":
        return {f"{NORMS[part]}.{_norm(kind)}": tensor}
    if part == "ffn":
        return {f"fc{int(inner[-1]) + 1}.{kind}": tensor}
    name, fused = ("self_attn", ("q", "k", "v")) if part == "self_attention" else ("encoder_attn", ("k", "v"))
    last = inner == ("linear_1" if part == "self_attention" else "linear_2")
    if last:
        return {f"{name}.out_proj.{kind}": tensor}
    if part == "attention" and inner == "linear_0":
        return {f"{name}.q_proj.{kind}": tensor}
    # The keys have no bias; the fused one has zeros for them.
    pieces = {one: _piece(tensor, number, len(fused)) for number, one in enumerate(fused)}
    return {f"{name}.{one}_proj.{kind}": piece for one, piece in pieces.items() if (one, kind) != ("k", "bias")}


def _piece(tensor: LazyTensor, number: int, count: int) -> LazyTensor:
    size = tensor.shape[0] // count
    part = slice(number * size, (number + 1) * size)
    return dataclasses.replace(tensor, shape=(size, *tensor.shape[1:]), read=lambda: tensor.read()[part])


def _norm(kind: str) -> str:
    return {"gamma": "weight", "beta": "bias"}[kind]
