"""A run's model as ONNX files, which ONNX Runtime, optimum and transformers.js run."""

import importlib.util
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import DType
from jaxformer.interop.huggingface.conventions import conventional
from jaxformer.interop.huggingface.folders import CONFIG, new_folder, read_json
from jaxformer.interop.huggingface.runs import read_origin
from jaxformer.runs import run as runs
from jaxformer.runs.run import Run

HOME = "onnx"
"""The folder of the programs in that of the export."""
PACKAGES = ("onnx_ir", "onnxruntime")
"""The packages that writing and comparing need."""
README = """# {kind} for ONNX Runtime

{files} computed by a model that jaxformer has trained, exported from JAX; its {count:,} parameters are
stored in float32 beside the programs. `pip install onnxruntime numpy` runs them:

```python
import numpy as np
import onnxruntime

{example}
print({{name: array.shape for name, array in outputs.items()}})
```
{clients}
{tables}
There may be any number of {many}.

ONNX Runtime was given the same inputs as the model in jaxformer before this was written: {comparison}.
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
{config} and the files of {beside} are those that `transformers` and transformers.js read. optimum
(`pip install "optimum-onnx[onnxruntime]"`) loads the folder by `ORTModel...from_pretrained`, transformers.js by
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
    """Writes a folder with a run's model as ONNX programs, its tokenizer, and how they are called.

    Files have the names and places that optimum and transformers.js look for: `onnx/model.onnx`, which is a decoder
    with a cache where the model generates text; of an encoder–decoder `onnx/encoder_model.onnx`, `decoder_model.onnx`,
    `decoder_with_past_model.onnx` and `decoder_model_merged.onnx`. The programs come from the model in JAX, so that
    models for which transformers has no class are exported too.

    Args:
      run: a run or its folder.
      out: the folder to write, which must not be there yet.
      dtype: of the weights: float32.

    Returns:
      How far what ONNX Runtime computes is from what the model does.

    Raises:
      InputError: another `dtype`, a package that is missing, or a model of another kind; ONNX Runtime computes
        something else; `out` already exists or cannot be written.
    """
    if dtype != "float32":
        raise InputError(f"--dtype {dtype}: expected float32 for --format onnx")
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--format onnx: {name} is not installed; pip install 'jaxformer[onnx]'")
    from jaxformer.interop.export import onnx_config, onnx_files, onnx_programs

    run = run if isinstance(run, Run) else runs.open_run(run, in_memory=False)
    # The programs and the files beside them have the same ids.
    run = run if read_origin(run.folder) else conventional(run)
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
    token = int(not config.get("pad_token_id"))  # Any but padding.
    images = any("pixel_values" in program.arguments for program in found.values())
    names = ", ".join(f"`{HOME}/{name}.onnx`" for name in found)
    architecture = config["architectures"][0]
    page = README.format(
        kind=type(run.model).__name__,
        files=f"{names} {'is' if len(found) == 1 else 'are'}",
        count=sum(math.prod(array.shape) for array in jax.tree.leaves(run.params)),
        example=CALL.format(home=HOME) + (ANSWERING.format(token=token) if len(found) > 1 else _example(found, token)),
        clients=CLIENTS.format(
            config="`config.json`",
            beside="the images' preparation" if images else "the tokenizer",
            problem=""
            if problem is None
            else f"\nThe parameters are not those of transformers' `{architecture}`, whose arguments and outputs the "
            f"programs have: {problem}.",
        ),
        tables="".join(_table(name, found[name], sessions[name]) for name in found),
        many="images (batch_size)" if images else f"rows (batch_size), each of up to {run.model.max_length:,} tokens",
        comparison=comparison,
    )
    (folder / "README.md").write_text(page, encoding="utf-8")


def _example(found: Mapping, token: int) -> str:
    """A call with arrays of ones, and no earlier tokens."""
    (name, program), sizes = *found.items(), {"batch_size": 2, "sequence_length": 8, "past_sequence_length": 0}
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
        none = f"none = np.zeros({next(iter(cached.values()))}, np.float32)  # Keys and values of no earlier tokens.\n"
        return "\n".join([f"{none}inputs = {{", *lines, f"    **{past},", "}", f'outputs = run("{name}", inputs)'])
    return "\n".join(["inputs = {", *lines, "}", f'outputs = run("{name}", inputs)'])


def _table(name: str, program, session) -> str:
    arguments = _rows((given, spec.dtype, spec.axes, spec.meaning) for given, spec in program.arguments.items())
    outputs = _rows((given.name, "float32", given.shape) for given in session.get_outputs())
    return TABLE.format(file=f"{HOME}/{name}.onnx", arguments=arguments, outputs=outputs)


def _rows(cells: Iterable[tuple]) -> str:
    """Rows of a table; those that differ in a layer's number alone are one."""
    lines = {}
    for name, dtype, axes, *rest in cells:
        general = ".".join("{layer}" if part.isdigit() else part for part in name.split("."))
        lines[general] = " | ".join([f"| `{general}`", dtype, ", ".join(map(str, axes)), *rest]) + " |"
    return "\n".join(lines.values())
