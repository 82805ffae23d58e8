"""Reads and writes the diffusion Transformer of Hugging Face diffusers: a folder with config.json and the weights of a
`DiTTransformer2DModel`, such as the subfolder `transformer` of DiT-XL/2.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.safetensors_file import open_safetensors, write_safetensors
from jaxformer.interop.formats.torch_pickle import open_pytorch
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.families.rows import attention, linear
from jaxformer.interop.huggingface.folders import CONFIG, new_folder, read_json, write_json
from jaxformer.interop.huggingface.table import ParamMapping, Table, tensor_mappings
from jaxformer.layers.adaptive import AdaGate, AdaLayerNorm
from jaxformer.layers.attention import Attention
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.transformer import Transformer
from jaxformer.models.dit import Dit
from jaxformer.objectives.flow_matching import FlowMatching
from jaxformer.runs.run import Run

CLASS = "DiTTransformer2DModel"
WEIGHTS = "diffusion_pytorch_model.safetensors"
READERS = {WEIGHTS: open_safetensors, "diffusion_pytorch_model.bin": open_pytorch}
"""Maps names of weight files to functions that open them, in order of preference."""
BLOCKS, THEIRS = "transformer/blocks", "transformer_blocks.{l}"
MODULATED = tuple(
    f"{BLOCKS}/{layer}_{part}"
    for layer in ("attention", "mlp")
    for part in ("norm/shift", "norm/scale", "residual/gate")
)
"""Paths of the linear layers that one tensor of a block contains, in its order."""
ENDS = ("transformer/norm/shift", "transformer/norm/scale")
"""Paths of the linear layers of the norm after the last block, in the order of their tensor."""


def table(depth: int) -> Table:
    """Returns the table that maps the parameters of a `Dit` with classes to the tensors of diffusers.

    diffusers stores the embeddings of times and classes once per block, with equal values.
    """
    embeddings = [
        *linear("time/up", "timestep_embedder.linear_1", "d i -> i d"),
        *linear("time/down", "timestep_embedder.linear_2", "d i -> i d"),
        ParamMapping("class_embedding", "class_embedder.embedding_table.weight"),
    ]
    rows = [
        *linear("embeddings/patch", "pos_embed.proj", "d n y x -> y x n d"),
        *(_of_all_blocks(row, depth) for row in embeddings),
        *_merged(MODULATED, f"{THEIRS}.norm1.linear"),
        *attention(
            f"{BLOCKS}/attention",
            f"{THEIRS}.attn1.to_q",
            f"{THEIRS}.attn1.to_k",
            f"{THEIRS}.attn1.to_v",
            f"{THEIRS}.attn1.to_out.0",
        ),
        *linear(f"{BLOCKS}/mlp/up", f"{THEIRS}.ff.net.0.proj"),
        *linear(f"{BLOCKS}/mlp/down", f"{THEIRS}.ff.net.2"),
        *_merged(ENDS, "proj_out_1"),
        *linear("head", "proj_out_2"),
    ]
    return Table(tuple(rows), known={"pos_embed.pos_embed": "sinusoidal positions, which are computed"})


def read_dit(folder: str | os.PathLike) -> tuple[Dit, Any]:
    """Reads a diffusion Transformer from a folder of diffusers. Returns the model and its parameters, float32.

    Class names are the numbers of the classes, because diffusers stores them elsewhere. Inputs of the model are latents
    or pixels that are already normalized.

    Raises:
      InputError: If a file is missing or invalid, or the model has a setting that is not supported.
    """
    home = Path(folder)
    if not (home / CONFIG).is_file():
        raise InputError(f"{home}: has no {CONFIG}; expected a folder of diffusers")
    model = build(ConfigReader(read_json(home / CONFIG), str(home / CONFIG)))
    found = next((name for name in READERS if (home / name).is_file()), None)
    if found is None:
        raise InputError(f"{home}: has no weights; expected {' or '.join(READERS)}")
    stored, shapes = READERS[found](home / found), parameters.abstract(model)
    params = parameters.read(table(model.transformer.depth), shapes, stored, np.dtype(np.float32), str(home / found))
    return model, params


def write_dit(model: Dit, params: Any, folder: str | os.PathLike) -> None:
    """Writes a folder that `DiTTransformer2DModel.from_pretrained` loads. The folder is written completely or not at
    all.

    Args:
      model: a DiT whose images have classes.
      params: parameters of the model.
      folder: folder to write. It must not exist.

    Raises:
      InputError: If diffusers does not have this model, or the folder exists or cannot be written.
    """
    config = describe(model)
    other = build(ConfigReader(config, CLASS), model.labels)
    if found := differences(model, other):
        raise InputError(f"{CLASS} cannot represent this model: {found[0].describe('here', 'in diffusers')}")
    arrays = parameters.flat(params)
    shapes = {path: array.shape for path, array in arrays.items()}
    tensors = dict(_tensors(table(model.transformer.depth), shapes, arrays))
    with new_folder(folder) as home:
        write_json(home / CONFIG, config)
        layouts = {name: (array.dtype, array.shape) for name, array in tensors.items()}
        write_safetensors(home / WEIGHTS, layouts, iter(tensors.values()))


def export_dit(run: Run, folder: str | os.PathLike) -> str:
    """Exports a run to a folder that diffusers loads (see `write_dit`). Returns a line about what the model predicts.

    Raises:
      InputError: If the model of the run is not a DiT, or cannot be written.
    """
    model, objective = run.model, run.objective
    if not isinstance(model, Dit):
        raise InputError(f"{run.folder}: diffusers has no class for a {type(model).__name__}; expected a Dit")
    write_dit(model, run.params, folder)
    predicted = objective.predicts if isinstance(objective, FlowMatching) else "velocity"
    means, stds = (", ".join(map(str, values)) for values in (model.mean, model.std))
    return f"it predicts the {predicted}, for times from 0 to 1000 and pixels (x / 255 - {means}) / {stds}"


def build(reader: ConfigReader, labels: tuple[str, ...] = ()) -> Dit:
    """Builds the model for a config of diffusers. `labels` are its class names, or empty for the numbers of the
    classes.
    """
    reader.must("_class_name", CLASS)
    reader.must("norm_type", "ada_norm_zero")
    reader.must("activation_fn", "gelu-approximate")
    reader.must("norm_elementwise_affine", False)
    reader.must("upcast_attention", False, True)  # Attention weights are computed in float32.
    for name in ("_diffusers_version", "norm_num_groups"):
        reader.get(name)  # Without effect.
    heads, channels = reader.integer("num_attention_heads", 16), reader.integer("in_channels", 4)
    outputs, classes = reader.integer("out_channels", channels), reader.integer("num_embeds_ada_norm", 1000)
    epsilon = reader.number("norm_eps", 1e-5)
    with reader.located():
        model = Dit(
            Transformer(
                heads * reader.integer("attention_head_dim", 72),
                reader.integer("num_layers", 28),
                heads,
                attention=Attention(bias=reader.flag("attention_bias", True)),
                mlp=Mlp(activation="gelu_tanh"),
                norm=AdaLayerNorm(mlp_epsilon=None if epsilon == AdaLayerNorm.epsilon else epsilon),
                residual=AdaGate(),
                dropout=reader.rate("dropout"),
                attention_dropout=0.0,
            ),
            labels or tuple(map(str, range(classes))),
            image=reader.integer("sample_size", 32),
            patch=reader.integer("patch_size", 2),
            channels=channels,
            out_channels=None if outputs == channels else outputs,
        )
    reader.finish()
    return model


def describe(model: Dit) -> dict[str, Any]:
    """Converts a model to a config of diffusers. Raises InputError if it has no classes."""
    stack = model.transformer
    if not model.labels:
        raise InputError(f"{CLASS} has classes; expected a model with labels")
    return {
        "_class_name": CLASS,
        "num_attention_heads": stack.heads,
        "attention_head_dim": stack.width // stack.heads,
        "in_channels": model.channels,
        "out_channels": model.outputs,
        "num_layers": stack.depth,
        "dropout": stack.dropout,
        "attention_bias": getattr(stack.attention, "bias", True),
        "sample_size": model.image,
        "patch_size": model.patch,
        "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": len(model.labels),
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
        "norm_eps": getattr(stack.norm, "mlp_epsilon", None) or AdaLayerNorm.epsilon,
    }


def _tensors(
    mapped: Table, shapes: Mapping[str, tuple[int, ...]], arrays: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the values of each tensor, including the copies in further blocks."""
    mappings = tensor_mappings(mapped, shapes)
    values = parameters.written(mappings, arrays, np.dtype(np.float32))
    for mapping, array in zip(mappings, values, strict=True):
        yield mapping.name, array
        yield from ((name, array) for name in mapping.copies)


def _of_all_blocks(row: ParamMapping, depth: int) -> ParamMapping:
    """Returns a mapping of an embedding that each of `depth` blocks stores. `row.theirs` is the name of its tensor
    within a block.
    """
    first, *copies = (f"transformer_blocks.{number}.norm1.emb.{row.theirs}" for number in range(depth))
    return ParamMapping(row.ours, first, row.pattern, tuple(copies))


def _merged(paths: tuple[str, ...], theirs: str) -> list[ParamMapping]:
    """Returns the mappings of linear layers whose outputs diffusers concatenates in one linear layer.

    Args:
      paths: parameter paths of the layers.
      theirs: prefix of the tensor names.
    """
    kernels, biases = (tuple(f"{path}/{name}" for path in paths) for name in ("kernel", "bias"))
    return [
        ParamMapping(kernels, f"{theirs}.weight", "(n d) i -> n i d"),
        ParamMapping(biases, f"{theirs}.bias", "(n d) -> n d"),
    ]
