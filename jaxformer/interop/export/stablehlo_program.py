"""Exports a model as a StableHLO program, which needs only JAX to run, together with its weights and a README."""

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import BFLOAT16, FLOATS, DType
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.folders import new_folder
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import InputSpec, Model
from jaxformer.runs import run as runs
from jaxformer.runs.run import Run

PROGRAM, WEIGHTS = "model.stablehlo", "params.npz"
EXAMPLE_SIZES = {"b": 2, "u": 16_000}
"""Lengths of input axes in the example of the README, keyed by the letters of the axes. Other axes have length 8."""
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that an exported program can run on."""
README = """# {kind} as a StableHLO program

`{program}` is the forward pass of a model, exported by jaxformer through `jax.export`; `{weights}` are its {count:,}
parameters in {dtype}. It runs on CPU, GPU and TPU and requires `pip install jax flatbuffers`:

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

The program accepts any number of {rows}. It computes in float32 and returns
{outputs}.{beside}

It was written by jax {version}; jax guarantees that later versions run it for at least six months.
"""


def export_stablehlo(run: Run | str | os.PathLike, out: str | os.PathLike, dtype: DType = "float32") -> None:
    """Writes a folder with the forward pass of a run's model as a StableHLO program.

    The folder also contains the weights, and a README with an example call.

    Args:
      run: Run, or folder of a run.
      out: Folder to write. It must not exist.
      dtype: Dtype of the weights. The program computes in float32.

    Raises:
      InputError: If the kind of model is not supported, or `out` exists or cannot be written.
    """
    run = run if isinstance(run, Run) else runs.open_run(run)
    with new_folder(out) as folder:
        arrays = parameters.flat(jax.device_get(run.params))
        params = {path: _stored(path, array, FLOATS[dtype]) for path, array in arrays.items()}
        exported = forward_pass(run.model, params, dtype)
        (folder / PROGRAM).write_bytes(exported.serialize())
        np.savez(folder / WEIGHTS, allow_pickle=True, **params)
        if run.tokenizer is not None:
            run.tokenizer.save(str(folder / "tokenizer"))
        (folder / "README.md").write_text(_readme(run.model, params, dtype, exported), encoding="utf-8")


def forward_pass(model: Model, params: Mapping[str, Any], dtype: DType) -> jax.export.Exported:
    """Exports the forward pass of a model as a StableHLO program. The program takes a dict that maps parameter paths to
    arrays, followed by the input arrays that `arguments` lists. It returns a dict that maps output names to arrays.

    Args:
      model: Model to export.
      params: Parameters, keyed by path, in the types in which `params.npz` stores them.
      dtype: Dtype of the parameters.

    Raises:
      InputError: If the kind of model is not supported.
    """
    specs = arguments(model)
    model = portable(model)
    sizes: dict[str, Any] = dict(model.fixed_sizes())
    letters = sorted({letter for spec in specs.values() for letter in spec.axes} - sizes.keys())
    limits = {specs[name].axes[1]: limit.max_length for name, limit in model.token_inputs().items()}
    constraints = [f"{letter} <= {length}" for letter, length in limits.items()]
    constraints += [f"{letter} >= {length}" for letter, length in model.least_sizes().items()]
    sizes |= zip(letters, jax.export.symbolic_shape(", ".join(letters), constraints=constraints), strict=True)

    def forward(params, *arrays):
        if dtype == "bfloat16":  # NumPy has no bfloat16: its files contain the bits.
            params = {path: jax.lax.bitcast_convert_type(array, jnp.bfloat16) for path, array in params.items()}
        tree = parameters.nested({path: array.astype(jnp.float32) for path, array in params.items()})
        named = dict(zip(specs, arrays, strict=True))
        output = model.apply({"params": tree}, **named)
        return {name: array for name in output.exported if (array := getattr(output, name, None)) is not None}

    arrays = [
        jax.ShapeDtypeStruct([sizes[letter] for letter in spec.axes], np.dtype(spec.dtype)) for spec in specs.values()
    ]
    weights = {path: jax.ShapeDtypeStruct(array.shape, array.dtype) for path, array in params.items()}
    return jax.export.export(jax.jit(forward), platforms=PLATFORMS)(weights, *arrays)


def arguments(model: Model) -> dict[str, InputSpec]:
    """Returns the specifications of the input arrays that an exported program takes after the parameters, in order and
    keyed by name.

    Raises:
      InputError: If `model` is not a `Model`, or is given masks of the frames of waveforms.
    """
    if not isinstance(model, Model):
        raise InputError(f"model={type(model).__name__}: expected a model of text or of images for --format stablehlo")
    specs = {name: spec for name, spec in model.inputs().items() if spec.exported}
    if {"u", "t"} <= {letter for spec in specs.values() for letter in spec.axes}:
        raise InputError(
            f"model={type(model).__name__}: masked frames of waveforms cannot be an argument of an exported program; "
            "expected a recognizer of speech, such as Wav2Vec2Ctc"
        )
    return specs


def portable(model: Model) -> Model:
    """Returns an equivalent model that can be exported for all platforms: it computes in float32, contains a loop over
    its layers instead of a copy of the code for each layer, and uses no platform-specific kernels.
    """

    def blockwise(attention: Any) -> Any:
        return attention and dataclasses.replace(attention, kernel="blocks")

    def changed(stack: Transformer) -> Transformer:
        period = tuple(dataclasses.replace(kind, attention=blockwise(kind.attention)) for kind in stack.period)
        attention = blockwise(stack.attention)
        return dataclasses.replace(stack, dtype="float32", unroll=1, attention=attention, period=period)

    return model.map_stacks(changed)


def _stored(path: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts a parameter to the dtype in which `params.npz` stores it. bfloat16 values are returned as their bits in
    uint16, because NumPy files have no bfloat16.

    Raises:
      InputError: If a value exceeds the range of the dtype.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(array).astype(dtype)
    parameters.check_range(array, path)
    return array.view(np.uint16) if dtype == BFLOAT16 else array


def _rows(model: Model) -> str:
    """Describes the batches that an exported program accepts."""
    least = model.least_sizes().get("u")
    if least is not None:
        return f"waveforms (b), each of {least:,} samples (u) or more"
    limits = model.text_limits
    return "images (b)" if limits is None else f"rows (b), each of up to {limits.max_length:,} tokens"


def _readme(model: Model, params: Mapping[str, np.ndarray], dtype: DType, exported: jax.export.Exported) -> str:
    specs, fixed = arguments(model), model.fixed_sizes()
    has_tokenizer = bool(model.token_inputs()) or model.output_vocab is not None
    example, rows = [], []
    for name, spec in specs.items():
        fill = "zeros" if "types" in name else "ones"
        sizes = ", ".join(str(fixed.get(letter, EXAMPLE_SIZES.get(letter, 8))) for letter in spec.axes)
        example.append(f"{name} = np.{fill}(({sizes}), np.{spec.dtype})")
        shape = ", ".join(str(fixed.get(letter, letter)) for letter in spec.axes)
        rows.append(f"| `{name}` | {spec.dtype} [{shape}] | {spec.meaning} |")
    outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    shapes = [f"`{name}` [{', '.join(map(str, array.shape))}]" for name, array in outputs.items()]
    return README.format(
        kind=type(model).__name__,
        program=PROGRAM,
        weights=WEIGHTS,
        count=sum(array.size for array in params.values()),
        dtype=f"{dtype} (as its bits, in uint16)" if dtype == "bfloat16" else dtype,
        example="\n".join(example),
        names=", ".join(specs),
        arguments="\n".join(rows),
        rows=_rows(model),
        outputs=" and ".join(shapes),
        beside=" `tokenizer/` is the tokenizer." if has_tokenizer else "",
        version=jax.__version__,
    )
