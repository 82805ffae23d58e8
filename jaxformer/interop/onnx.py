"""A model as an ONNX file, which ONNX Runtime runs: through its Hugging Face folder and PyTorch's exporter."""

import dataclasses
import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxformer import runs
from jaxformer.errors import InputError
from jaxformer.interop.folders import new_folder, open_folder
from jaxformer.interop.hf_runs import export_run
from jaxformer.interop.stored import DType
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt
from jaxformer.models.vit import Vit
from jaxformer.runs import Run

PROGRAM = "model.onnx"
PACKAGES = ("torch", "transformers", "onnxscript", "onnxruntime")
"""What writing and comparing it takes."""
LEFT_OUT = ("README.md", "*.safetensors", "*.safetensors.index.json")
"""What of the Hugging Face folder does not come with the program."""
README = """# {kind} for ONNX Runtime

`{program}` is the forward pass of a model, transformers' `{architecture}`, exported by jaxformer through PyTorch;
`{program}.data` are its {count:,} parameters in float32. It runs by `pip install onnxruntime numpy`:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{program}")
inputs = {{
{example}
}}
names = [output.name for output in session.get_outputs()]
outputs = dict(zip(names, session.run(names, inputs)))
print({{name: array.shape for name, array in outputs.items()}})
```

| argument | type | axes | meaning |
|---|---|---|---|
{arguments}

| output | type | axes |
|---|---|---|
{outputs}

There may be any number of {many}. Beside it are the model's
configuration and {beside}, as transformers reads them.

ONNX Runtime was given the same inputs as the model in jaxformer before this was written: {told}.
"""


@dataclasses.dataclass(frozen=True)
class Argument:
    """An array that a program takes."""

    part: str
    """What of `parity.Inputs` or `parity.Images` it is."""
    axes: tuple[str | int, ...]
    """Names of those of any length, and sizes."""
    meaning: str
    type: str = "int64"


def export_onnx(run: Run | str | os.PathLike, out: str | os.PathLike, dtype: DType = "float32") -> str:
    """Writes a folder with the forward pass of a run's model as an ONNX file, its tokenizer, and how it is called.

    Args:
      run: a run or its folder.
      out: the folder to write, which must not be there yet.
      dtype: of the weights: float32.

    Returns:
      How far what ONNX Runtime computes is from what the model does.

    Raises:
      InputError: another `dtype`, a package that is missing, a model of another kind or one that PyTorch cannot export;
        ONNX Runtime computes something else; `out` is there already or cannot be written.
    """
    if dtype != "float32":
        raise InputError(f"--dtype {dtype}: expected float32 for --format onnx")
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise InputError(f"--format onnx: {name} is not installed; pip install 'jaxformer[onnx]'")
    from jaxformer.interop import onnx_program

    run = run if isinstance(run, Run) else runs.open_run(run, in_memory=False)
    taken = arguments(run.model)
    with new_folder(out) as folder:
        source = folder / "huggingface"
        export_run(run, source, certificate=False)
        theirs = open_folder(source)
        outputs = onnx_program.write(run.model, theirs, folder / PROGRAM, taken)
        session = onnx_program.open_session(folder / PROGRAM)
        told = onnx_program.compared(run, theirs, session, taken, outputs)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), dirs_exist_ok=True)
        shutil.rmtree(source)
        returned = {output.name: output.shape for output in session.get_outputs()}
        (folder / "README.md").write_text(_readme(run, theirs.config, taken, returned, told), encoding="utf-8")
    return told


def arguments(model: nn.Module) -> dict[str, Argument]:
    """What a model's program takes, by transformers' names.

    Raises:
      InputError: the model is of another kind.
    """
    if isinstance(model, Vit):
        axes, given = ("batch", model.channels, model.image, model.image), "preprocessor_config.json"
        meaning = f"pixels from 0 to 1, less the mean and divided by the deviation that `{given}` has"
        return {"pixel_values": Argument("images", axes, meaning, "float32")}
    axes, mask = ("batch", "length"), "1 where there is a token, 0 for padding, which stands behind"
    if isinstance(model, EncoderDecoder):
        return {
            "input_ids": Argument("read", ("batch", "input_length"), "ids of the tokens that the encoder reads"),
            "attention_mask": Argument("read_mask", ("batch", "input_length"), mask),
            "decoder_input_ids": Argument("tokens", axes, "ids of the tokens that the decoder goes on from"),
        }
    backbone = model.backbone if isinstance(model, Classifier) else model
    if not isinstance(backbone, Bert | Gpt):
        raise InputError(f"model={type(model).__name__}: expected a model of text, or Vit, for --format onnx")
    taken = {
        "input_ids": Argument("tokens", axes, "ids of the tokens"),
        "attention_mask": Argument("mask", axes, mask),
        "token_type_ids": Argument("types", axes, "0 in sentence A, 1 in sentence B"),
    }
    if getattr(backbone, "token_types", 0) < 2:
        del taken["token_type_ids"]
    return taken


def _readme(
    run: Run, config: Mapping[str, Any], taken: Mapping[str, Argument], returned: Mapping[str, list], told: str
) -> str:
    sizes = {"batch": 2, "input_length": 6, "length": 8}
    token = int(not config.get("pad_token_id"))  # Any but padding.
    fills = {"tokens": token, "read": token, "mask": 1, "read_mask": 1}
    example, rows = [], []
    for name, argument in taken.items():
        shape = tuple(sizes.get(axis, axis) for axis in argument.axes)
        example.append(f'    "{name}": np.full({shape}, {fills.get(argument.part, 0)}, np.{argument.type}),')
        rows.append(f"| `{name}` | {argument.type} | {_listed(argument.axes)} | {argument.meaning} |")
    if "pixel_values" in taken:
        many, beside = "images (batch)", "that of the images' preparation"
    else:
        many, beside = f"rows (batch), each of up to {run.model.positions:,} tokens", "the tokenizer"
    return README.format(
        kind=type(run.model).__name__,
        architecture=config["architectures"][0],
        program=PROGRAM,
        count=sum(math.prod(array.shape) for array in jax.tree.leaves(run.params)),
        example="\n".join(example),
        arguments="\n".join(rows),
        outputs="\n".join(f"| `{name}` | float32 | {_listed(axes)} |" for name, axes in returned.items()),
        many=many,
        beside=beside,
        told=told,
    )


def _listed(axes) -> str:
    return ", ".join(map(str, axes))
