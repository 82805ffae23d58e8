"""A model as a StableHLO program, which jax alone runs: the program, its weights beside it, and how to call it."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import BFLOAT16, FLOATS, DType
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.folders import new_folder
from jaxformer.interop.huggingface.images import IMAGE_MODELS
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.masked_autoencoder import MaskedAutoencoder
from jaxformer.runs import run as runs
from jaxformer.runs.run import Run

PROGRAM, WEIGHTS = "model.stablehlo", "params.npz"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What the one program runs on."""
OUTPUTS = ("hidden", "logits", "pooled", "next_sentence_logits", "pixels", "masked")
"""What of our models' outputs a program returns."""
MEANINGS = {
    "tokens": "ids of the tokens",
    "segments": "1 where there is a token, 0 for padding",
    "token_types": "0 in sentence A, 1 in sentence B",
    "inputs": "ids of the tokens that the encoder reads",
    "input_segments": "as `segments`, of `inputs`",
    "images": "pixels, from 0 to 255",
    "noise": "of each patch; the encoder sees those with the least of it",
}
"""A program's arguments, behind the parameters."""
README = """# {kind} as a StableHLO program

`{program}` is the forward pass of a model, exported by jaxformer through `jax.export`; `{weights}` are its {count:,}
parameters in {dtype}. It runs on CPU, GPU and TPU by `pip install jax flatbuffers`:

```python
import jax
import jax.export
import numpy as np

with open("{program}", "rb") as file:
    program = jax.export.deserialize(bytearray(file.read()))
params = dict(np.load("{weights}"))
{example}
outputs = jax.jit(program.call)(params, {names})
print({{name: array.shape for name, array in outputs.items()}})
```

| argument | type | meaning |
|---|---|---|
{arguments}

There may be any number of {rows}. The program computes in float32 and returns
{outputs}.{beside}

It was written by jax {version}; later versions run it for six months at least, as jax promises.
"""


def export_stablehlo(run: Run | str | os.PathLike, out: str | os.PathLike, dtype: DType = "float32") -> None:
    """Writes a folder with the forward pass of a run's model as a program, its weights, and how jax alone calls it.

    Args:
      run: a run or its folder.
      out: the folder to write, which must not be there yet.
      dtype: of the weights; the program computes in float32.

    Raises:
      InputError: the model is of another kind, or `out` is there already or cannot be written.
    """
    run = run if isinstance(run, Run) else runs.open_run(run)
    with new_folder(out) as folder:
        arrays = parameters.flat(jax.device_get(run.params))
        params = {path: _stored(path, array, FLOATS[dtype]) for path, array in arrays.items()}
        exported = forward_pass(run.model, params, dtype)
        (folder / PROGRAM).write_bytes(exported.serialize())
        np.savez(folder / WEIGHTS, **params)
        if run.tokenizer is not None:
            run.tokenizer.save(str(folder / "tokenizer"))
        (folder / "README.md").write_text(_readme(run.model, params, dtype, exported), encoding="utf-8")


def forward_pass(model: nn.Module, params: Mapping[str, Any], dtype: DType) -> jax.export.Exported:
    """The program: from parameters by path and the `arguments` of the model to outputs by name.

    Args:
      model: ours.
      params: what `params.npz` holds.
      dtype: of the parameters.

    Raises:
      InputError: the model is of another kind.
    """
    shapes = arguments(model)
    model = portable(model)
    sizes = _fixed_sizes(model)
    letters = sorted(set("".join(shapes.values())) - sizes.keys())
    limits = [f"{letter} <= {model.max_length}" for letter in letters if letter != "b"]
    sizes |= zip(letters, jax.export.symbolic_shape(", ".join(letters), constraints=limits), strict=True)

    def forward(params, *arrays):
        if dtype == "bfloat16":  # NumPy has no such type: its files hold the bits.
            params = {path: jax.lax.bitcast_convert_type(array, jnp.bfloat16) for path, array in params.items()}
        tree = parameters.nested({path: array.astype(jnp.float32) for path, array in params.items()})
        output = model.apply({"params": tree}, **dict(zip(shapes, arrays, strict=True)))
        found = {name: getattr(output, name, None) for name in OUTPUTS if _has(output, name)}
        return {name: array for name, array in found.items() if array is not None}

    arrays = [
        jax.ShapeDtypeStruct([sizes[letter] for letter in axes], _argument_type(name)) for name, axes in shapes.items()
    ]
    weights = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in params.items()}
    return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(weights, *arrays)


def arguments(model: nn.Module) -> dict[str, str]:
    """The letters of the axes of each array that a model's program takes, by the array's name.

    Raises:
      InputError: the model is of another kind.
    """
    if isinstance(model, EncoderDecoder):
        return {"inputs": "bs", "tokens": "bt", "input_segments": "bs", "segments": "bt"}
    if isinstance(model, IMAGE_MODELS):
        return {"images": "bhwc"} | ({"noise": "bp"} if isinstance(model, MaskedAutoencoder) else {})
    backbone = model.backbone if isinstance(model, Classifier) else model
    if not isinstance(backbone, Bert | Gpt):
        raise InputError(f"model={type(model).__name__}: expected a model of text or of images for --format stablehlo")
    types = {"token_types": "bt"} if getattr(backbone, "token_types", 0) > 1 else {}
    return {"tokens": "bt", "segments": "bt"} | types


def _fixed_sizes(model: nn.Module) -> dict[str, int]:
    """The axes of the same length in every call: height, width, channels and patches of images."""
    if not isinstance(model, IMAGE_MODELS):
        return {}
    patches = {"p": model.patches} if isinstance(model, MaskedAutoencoder) else {}
    return {"h": model.image, "w": model.image, "c": model.channels} | patches


def _argument_type(name: str) -> np.dtype:
    return np.dtype({"images": np.uint8, "noise": np.float32}.get(name, np.int32))


def portable(model: nn.Module) -> nn.Module:
    """The model with its layers in a loop, in float32, and without kernels that only one platform has."""
    if isinstance(model, Classifier):
        return dataclasses.replace(model, backbone=portable(model.backbone))
    changed = {}
    for name in ("transformer", "encoder", "decoder"):
        if (stack := getattr(model, name, None)) is not None:
            attention = dataclasses.replace(stack.attention, kernel="blocks")
            changed[name] = dataclasses.replace(stack, dtype="float32", unroll=1, attention=attention)
    return dataclasses.replace(model, **changed)


def _has(output: Any, name: str) -> bool:
    """Whether it has such a part: logits need a head."""
    return name != "logits" or getattr(output, "decoder", output) is not None


def _stored(path: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The parameter of that path as `params.npz` holds it.

    Raises:
      InputError: a number does not fit the type.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(array).astype(dtype)
    parameters.check_range(array, path)
    return array.view(np.uint16) if dtype == BFLOAT16 else array


def _readme(model: nn.Module, params: Mapping[str, np.ndarray], dtype: DType, exported: jax.export.Exported) -> str:
    shapes, fixed = arguments(model), _fixed_sizes(model)
    example, rows = [], []
    for name, axes in shapes.items():
        kind, fill = _argument_type(name), "zeros" if "types" in name else "ones"
        sizes = {"b": 2, "s": 8, "t": 8} | fixed
        example.append(f"{name} = np.{fill}(({', '.join(str(sizes[letter]) for letter in axes)}), np.{kind})")
        shape = ", ".join(str(fixed.get(letter, letter)) for letter in axes)
        rows.append(f"| `{name}` | {kind} [{shape}] | {MEANINGS[name]} |")
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    told = [f"`{name}` [{', '.join(map(str, array.shape))}]" for name, array in outputs.items()]
    return README.format(
        kind=type(model).__name__,
        program=PROGRAM,
        weights=WEIGHTS,
        count=sum(array.size for array in params.values()),
        dtype=f"{dtype} (as its bits, in uint16)" if dtype == "bfloat16" else dtype,
        example="\n".join(example),
        names=", ".join(shapes),
        arguments="\n".join(rows),
        rows="images (b)" if fixed else f"rows (b), each of up to {model.max_length:,} tokens",
        outputs=" and ".join(told),
        beside="" if fixed else " `tokenizer/` is the tokenizer.",
        version=jax.__version__,
    )
