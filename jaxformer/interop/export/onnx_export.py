"""Exports the model of a run to ONNX files for ONNX Runtime, optimum and transformers.js."""

import importlib.util
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import DType
from jaxformer.interop.huggingface.conventions import to_exportable_form
from jaxformer.interop.huggingface.folders import CONFIG, new_folder, read_json
from jaxformer.interop.huggingface.runs import read_origin
from jaxformer.runs import run as runs
from jaxformer.runs.run import Run

HOME = "onnx"
"""Name of the subfolder of an export that contains the ONNX programs."""
PACKAGES = ("onnx_ir", "onnxruntime")
"""Python packages that the ONNX export requires."""
README = """# {kind} for ONNX Runtime

{files} exported from a JAX model that was trained with jaxformer; its {count:,} parameters are
stored in float32 in files next to the programs. `pip install onnxruntime numpy` runs them:

```python
import numpy as np
import onnxruntime

{example}
print({{name: array.shape for name, array in outputs.items()}})
```
{clients}
{tables}
The programs accept any number of {many}.

The export compared ONNX Runtime with the model in jaxformer on the same inputs: {comparison}.
"""
CALL = """def run(name, inputs):
    session = onnxruntime.InferenceSession(f"{home}/{{name}}.onnx")
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs)))


"""
ANSWERING = """inputs = {{
    "input_ids": np.full((2, 6), {token}, np.int64),
    "attention_mask": np.full((2, 6), 1, np.int64),
    "decoder_input_ids": np.full((2, 8), {token}, np.int64),
}}
encoded = run("encoder_model", {{name: inputs[name] for name in ("input_ids", "attention_mask")}})
outputs = run(
    "decoder_model",
    {{
        "input_ids": inputs["decoder_input_ids"],
        "encoder_attention_mask": inputs["attention_mask"],
        "encoder_hidden_states": encoded["last_hidden_state"],
    }},
)"""
CLIENTS = """
`transformers` and transformers.js read {config} and the files of {beside}. optimum
(`pip install "optimum-onnx[onnxruntime]"`) loads the folder with `ORTModel...from_pretrained`, transformers.js with
`pipeline(task, folder, {{dtype: "fp32"}})`.{problem}
"""
TABLE = """
| argument of `{file}` | type | axes | meaning |
|---|---|---|---|
{arguments}

| output | type | axes |
|---|---|---|
{outputs}
"""


def export_onnx(run: Run | str | os.PathLike, out: str | os.PathLike, dtype: DType = "float32") -> str:
    """Writes a folder with the model of a run as ONNX programs.

    The folder also contains the tokenizer, and a README that shows how to call the programs. File names are those that
    optimum and transformers.js expect: `onnx/model.onnx`, which has a cache if the model is a decoder that generates
    text; for an encoder–decoder `onnx/encoder_model.onnx`, `decoder_model.onnx`, `decoder_with_past_model.onnx` and
    `decoder_model_merged.onnx`. The programs are converted from the JAX model, so models without a class in the
    transformers library are supported too.

    Args:
      run: Run, or folder of a run.
      out: Folder to write. It must not exist.
      dtype: Dtype of the weights. Only float32 is supported.

    Returns:
      A sentence that states the difference between the results of ONNX Runtime and JAX.

    Raises:
      InputError: If the `dtype` or the kind of model is not supported, a package is missing, ONNX Runtime computes
        results that differ from those of JAX, or `out` exists or cannot be written.
    """
    if dtype != "float32":
        raise InputError(f"--dtype {dtype}: expected float32 for --format onnx")
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--format onnx: {name} is not installed; pip install 'jaxformer[onnx]'")
    from jaxformer.interop.export import onnx_config, onnx_files, onnx_programs

    run = run if isinstance(run, Run) else runs.open_run(run, in_memory=False)
    # The programs and the tokenizer files use the same ids.
    run = run if read_origin(run.folder) else to_exportable_form(run)
    found = onnx_programs.programs(run)
    with new_folder(out) as folder:
        with_data = [name for name in found if name not in (onnx_programs.DECODER, onnx_programs.WITH_PAST)]
        problem = onnx_config.write_files(run, folder, with_data)
        home = folder / HOME
        home.mkdir()
        params = onnx_files.flat(run)
        onnx_files.write(found, params, home)
        sessions = {name: onnx_files.open_session(home / f"{name}.onnx") for name in found}
        comparison = onnx_files.compared(run, found, params, sessions)
        _write_readme(folder, run, found, sessions, problem, comparison)
    return comparison


def _write_readme(
    folder: Path, run: Run, found: Mapping, sessions: Mapping, problem: str | None, comparison: str
) -> None:
    config = read_json(folder / CONFIG)
    token = int(not config.get("pad_token_id"))  # Any token except padding.
    images, sounds = (
        any(name in program.arguments for program in found.values()) for name in ("pixel_values", "input_values")
    )
    beside = "the images' preparation" if images else "the tokenizer"
    beside += " and the sounds' preparation" * sounds
    names = ", ".join(f"`{HOME}/{name}.onnx`" for name in found)
    architecture = config["architectures"][0]
    page = README.format(
        kind=type(run.model).__name__,
        files=f"{names} {'is' if len(found) == 1 else 'are'}",
        count=sum(math.prod(array.shape) for array in jax.tree.leaves(run.params)),
        example=CALL.format(home=HOME) + (ANSWERING.format(token=token) if len(found) > 1 else _example(found, token)),
        clients=CLIENTS.format(
            config="`config.json`",
            beside=beside,
            problem=""
            if problem is None
            else f"\nThe parameters are not those of transformers' `{architecture}`, whose arguments and outputs the "
            f"programs have: {problem}.",
        ),
        tables="".join(_table(name, found[name], sessions[name]) for name in found),
        many=_rows_of(run, images, sounds),
        comparison=comparison,
    )
    (folder / "README.md").write_text(page, encoding="utf-8")


def _rows_of(run: Run, images: bool, sounds: bool) -> str:
    """Describes the batches that the exported programs accept: images, sounds, or texts if both are False."""
    if sounds:
        return f"sounds (batch_size), each of {run.model.least_sizes()['u']:,} samples (sequence_length) or more"
    return "images (batch_size)" if images else f"rows (batch_size), each of up to {run.model.max_length:,} tokens"


def _example(found: Mapping, token: int) -> str:
    """Formats example Python code that calls an exported program with constant arrays and an empty key-value cache."""
    (name, program), sizes = *found.items(), {"batch_size": 2, "past_sequence_length": 0}
    sizes["sequence_length"] = 16_000 if "input_values" in program.arguments else 8
    sizes["past_sequence_length + sequence_length"] = 8
    lines, cached = [], {}
    for argument, spec in program.arguments.items():
        shape = tuple(sizes.get(axis, axis) for axis in spec.axes)
        if argument.startswith("past_key_values"):
            cached[argument] = shape
            continue
        fill = {"input_ids": token, "attention_mask": 1, "prefix_mask": 1}.get(argument, 0)
        lines.append(f'    "{argument}": np.full({shape}, {fill}, np.{spec.dtype}),')
    if cached:
        layers = len(cached) // 2
        each = f'for layer in range({layers}) for part in ("key", "value")'
        past = '{f"past_key_values.{layer}.{part}": none ' + each + "}"
        none = f"none = np.zeros({next(iter(cached.values()))}, np.float32)  # Empty cache.\n"
        return "\n".join([f"{none}inputs = {{", *lines, f"    **{past},", "}", f'outputs = run("{name}", inputs)'])
    return "\n".join(["inputs = {", *lines, "}", f'outputs = run("{name}", inputs)'])


def _table(name: str, program, session) -> str:
    arguments = _rows((given, spec.dtype, spec.axes, spec.meaning) for given, spec in program.arguments.items())
    outputs = _rows((given.name, "float32", given.shape) for given in session.get_outputs())
    return TABLE.format(file=f"{HOME}/{name}.onnx", arguments=arguments, outputs=outputs)


def _rows(cells: Iterable[tuple]) -> str:
    """Formats tuples, which contain a name, a dtype, axes and other cells, as rows of a Markdown table. Names that
    differ only in the layer number share one row.
    """
    lines = {}
    for name, dtype, axes, *rest in cells:
        general = ".".join("{layer}" if part.isdigit() else part for part in name.split("."))
        lines[general] = " | ".join([f"| `{general}`", dtype, ", ".join(map(str, axes)), *rest]) + " |"
    return "\n".join(lines.values())
