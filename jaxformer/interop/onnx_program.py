"""An ONNX file of the model in a Hugging Face folder, and its outputs beside those of ours."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import flax.linen as nn
import numpy as np
import onnx_ir.passes.common
import onnxruntime
import torch

from jaxformer.checkpoints import loaded
from jaxformer.errors import InputError
from jaxformer.interop import certificate, parity
from jaxformer.interop.folders import Folder
from jaxformer.interop.hard_strings import HARD_STRINGS
from jaxformer.interop.onnx import Argument
from jaxformer.runs import Run

Outputs = Mapping[str, list[str]]
"""Attributes of what a model of transformers returns, by what `parity` calls them."""


class Program(torch.nn.Module):
    """A model of transformers as a function from arrays to arrays."""

    def __init__(self, network: torch.nn.Module, arguments: list[str], outputs: list[str]):
        """Takes and returns what is called so."""
        super().__init__()
        self.network, self.arguments, self.outputs = network, arguments, outputs

    def forward(self, *arrays):
        """Its outputs, in their order."""
        output = self.network(**dict(zip(self.arguments, arrays, strict=True)))
        return tuple(getattr(output, name) for name in self.outputs)


def write(model: nn.Module, folder: Folder, path: Path, taken: Mapping[str, Argument]) -> Outputs:
    """Writes the file, and another one with the weights beside it.

    Args:
      model: ours, of which the folder is the export.
      folder: the Hugging Face folder.
      path: where to write.
      taken: what the program takes.

    Returns:
      What it gives.

    Raises:
      InputError: PyTorch cannot export the model.
    """
    with _quiet():
        network = parity.Theirs(folder, (), folder.config["architectures"][0], "float32").network
        network.config.use_cache = False
        rows = next(parity.inputs(model, [], _pad(folder)))
        given = {name: torch.from_numpy(array) for name, array in _given(rows, taken).items()}
        if "decoder_input_ids" in given:  # Lengths that are the same by chance would be held for one.
            given["decoder_input_ids"] = given["decoder_input_ids"][:, :-1]
        with torch.no_grad():
            outputs = _outputs(network(**given), model)
        names = [name for parts in outputs.values() for name in parts]
        axes = tuple(
            {number: axis for number, axis in enumerate(argument.axes) if isinstance(axis, str)}
            for argument in taken.values()
        )
        settings = {"input_names": list(given), "output_names": names, "dynamic_shapes": (axes,)}
        program = Program(network, list(given), names)
        try:
            exported = torch.onnx.export(program, tuple(given.values()), dynamo=True, verbose=False, **settings)
        except Exception as error:  # Whatever it is: the exporter is made of many parts.
            told = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"torch {torch.__version__} cannot export {type(network).__name__}: {told}") from error
        # Most of the file would be where in which source file of this machine each operation comes from.
        onnx_ir.passes.common.ClearMetadataAndDocStringPass()(exported.model)
        exported.save(path, external_data=True)
    return outputs


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """What runs a file on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors.
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def compared(
    run: Run,
    folder: Folder,
    session: onnxruntime.InferenceSession,
    taken: Mapping[str, Argument],
    outputs: Outputs,
) -> str:
    """How far the program's outputs are from those of the run's model, on the certificate's inputs, as a sentence.

    Raises:
      InputError: further than the certificate's tolerance.
    """
    ours, most = parity.Ours(run.model, loaded(run.params), "float32"), 0.0
    texts = [] if run.tokenizer is None else [run.tokenizer.encode(text) for text in HARD_STRINGS]
    for rows in parity.inputs(run.model, texts, _pad(folder)):
        expected = ours(rows, list(outputs)).outputs
        for name, parts in outputs.items():
            found = session.run(parts, _given(rows, taken))
            found = found[0] if len(found) == 1 else np.stack(found, -1)
            line = certificate.compared(name, " × ".join(map(str, rows.shape)), found, expected[name], rows.mask)
            if not line.passed:
                told = f"{name} ({rows.name}, {line.where}) differ by {line.measured:.1e}, above {line.tolerance:.0e}"
                raise InputError(f"not what ONNX Runtime computes: {told}")
            most = max(most, line.measured)
    return f"outputs differ by {most:.1e} at most, relative to the largest"


def _given(rows: parity.Inputs | parity.Images, taken: Mapping[str, Argument]) -> dict[str, np.ndarray]:
    """What a program is called with."""
    arrays = {name: getattr(rows, argument.part).astype(argument.type) for name, argument in taken.items()}
    return {name: np.moveaxis(array, -1, 1) if array.ndim == 4 else array for name, array in arrays.items()}


def _outputs(output: object, model: nn.Module) -> Outputs:
    if hasattr(output, "start_logits"):
        return {"logits": ["start_logits", "end_logits"]}
    found = {name: [part for part in parity.OUTPUTS[name] if hasattr(output, part)] for name in parity.computed(model)}
    return {name: parts for name, parts in found.items() if parts}


def _pad(folder: Folder) -> int:
    return folder.config.get("pad_token_id") or 0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers and the exporter say of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
