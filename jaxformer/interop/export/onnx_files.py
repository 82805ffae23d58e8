"""Writes ONNX files, runs them in ONNX Runtime, and compares the results with the JAX model."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import onnxruntime

from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_build import build
from jaxformer.interop.export.onnx_programs import (
    DECODER,
    ENCODER,
    MERGED,
    PAST,
    SINGLE,
    WITH_PAST,
    Program,
    apply,
    inputs_of,
)
from jaxformer.interop.export.stablehlo_program import portable
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.parity import lines
from jaxformer.interop.parity.hard_strings import HARD_STRINGS
from jaxformer.runs.run import Run

EXTERNAL_DATA_THRESHOLD = 256
"""Minimum size in bytes of the arrays that are stored in the external data file. Smaller arrays are stored in the ONNX
file.
"""
ROWS, LENGTH, LONG_LENGTH = 3, 16, 256
"""Sizes of the test inputs for which ONNX Runtime and JAX are compared: number of rows (texts or images) in a batch,
number of tokens per row, and number of tokens of an additional long row.
"""

Arrays = Mapping[str, np.ndarray]
Sessions = Mapping[str, onnxruntime.InferenceSession]


def write(found: Mapping[str, Program], params: Arrays, folder: Path) -> None:
    """Writes an ONNX file NAME.onnx for each program, and its parameters to NAME.onnx_data.

    The decoders of an encoder–decoder have the same parameters, so they share the data file of `decoder_model_merged`.

    Args:
      found: Programs, keyed by file name without extension.
      params: Parameters, keyed by path.
      folder: Existing folder to write to.

    Raises:
      InputError: If a model uses an operation that cannot be converted to ONNX.
    """
    stored: dict[tuple, ir.ExternalTensor] = {}
    for name in sorted(found, key=lambda name: (name != MERGED, name)):
        program = found[name]
        model = build(program.function, params, program.arguments, program.limits)
        onnx_ir.passes.common.RemoveUnusedNodesPass()(model)
        path = folder / f"{name}.onnx"
        if name in (DECODER, WITH_PAST):
            _share(model, stored)
            ir.save(model, path)
            continue
        ir.save(model, path, external_data=f"{name}.onnx_data", size_threshold_bytes=EXTERNAL_DATA_THRESHOLD)
        if name == MERGED:
            tensors = [value.const_value for value in ir.load(path).graph.initializers.values()]
            stored = {_content(tensor): tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)}


def _content(tensor: Any) -> tuple:
    return tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def _share(model: ir.Model, stored: Mapping[tuple, ir.ExternalTensor]) -> None:
    """Replaces weights of an ONNX model by references to equal weights in the data file of another program, so that
    they are stored only once. `stored` maps (dtype, shape, hash of the values) to the weights in that file.
    """
    for value in model.graph.initializers.values():
        if (same := stored.get(_content(value.const_value))) is not None and value.name is not None:
            value.const_value = ir.ExternalTensor(
                same.location,
                same.offset,
                same.length,
                same.dtype,
                shape=same.shape,
                name=value.name,
                base_dir=same.base_dir,
            )


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Opens an ONNX file for inference on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # Errors.
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@dataclasses.dataclass(frozen=True)
class TestBatch:
    """Batch of test inputs for which the outputs of ONNX Runtime and JAX are compared."""

    name: str
    arrays: Arrays
    """Input arrays, keyed by name. For an encoder–decoder, `tokens` are the decoder inputs."""
    mask: np.ndarray | None
    """Mask [batch, length] of the tokens whose outputs are compared. If None, all outputs are compared."""
    read: Arrays = dataclasses.field(default_factory=dict)
    """Arguments of the encoder of an encoder–decoder, keyed by name."""


def compared(run: Run, found: Mapping[str, Program], params: Arrays, sessions: Sessions) -> str:
    """Compares the ONNX files with the JAX model on the same inputs. Returns a sentence that states the largest
    difference.

    A decoder with a cache is called twice per row: with the first half of the tokens, and then with the second half and
    the keys and values that the first call returned. The reference is the JAX model without a cache.

    Raises:
      InputError: If the difference exceeds the tolerance of `parity.lines.compared`.
    """
    most = 0.0
    for rows in _inputs(run, found):
        expected = _expected(run, found, params, rows)
        for outputs in _computed(run, found, sessions, rows):
            for name, array in outputs.items():
                where = " × ".join(map(str, rows.arrays[next(iter(rows.arrays))].shape))
                line = lines.compared(name, where, array, np.asarray(expected[name]), rows.mask)
                if not line.passed:
                    comparison = (
                        f"{name} ({rows.name}, {line.where}) differ by {line.measured:.1e}, above {line.tolerance:.0e}"
                    )
                    raise InputError(f"the results differ from those of ONNX Runtime: {comparison}")
                most = max(most, line.measured)
    return f"outputs differ by {most:.1e} at most, relative to the largest"


IMAGE_INPUTS = ("pixel_values", "noise")


def _inputs(run: Run, found: Mapping[str, Program]) -> Iterator[TestBatch]:
    """Yields test inputs on which the ONNX model is compared with the JAX model: batches of random waveforms for a
    speech model, two batches of random images for an image model, or one batch of texts with padding and one with a
    single long text.
    """
    rng, model = np.random.default_rng(0), run.model
    bridge = bridge_of(model)
    if waveforms := bridge.random_inputs(model, rng):
        yield from (TestBatch(name, bridge.call_arguments(model, arrays), None) for name, arrays in waveforms)
        return
    if SINGLE in found and "pixel_values" in (arguments := found[SINGLE].arguments):
        for name, scale in (("within range", 1.0), ("out of distribution", 10.0)):
            shapes = {key: [ROWS, *map(int, arguments[key].axes[1:])] for key in IMAGE_INPUTS if key in arguments}
            arrays = {"pixel_values": rng.normal(0, scale, shapes["pixel_values"]).astype(np.float32)}
            if "noise" in shapes:
                arrays["noise"] = rng.random(shapes["noise"], np.float32)
            yield TestBatch(name, arrays, None)
        return
    texts = [] if run.tokenizer is None else [run.tokenizer.encode(text) for text in HARD_STRINGS]
    limits = model.require_text_limits()
    stream = np.concatenate([*texts, rng.integers(0, limits.vocab, ROWS * LONG_LENGTH)]).astype(np.int64)
    short, long = min(LENGTH, limits.max_length), min(LONG_LENGTH, limits.max_length)
    for name, lengths in (("padded", [short, max(1, short // 2), 1]), ("long", [long])):
        tokens = stream[: len(lengths) * lengths[0]].reshape(len(lengths), lengths[0])
        mask = (np.arange(lengths[0]) < np.array(lengths)[:, None]).astype(np.int64)
        types = (np.arange(lengths[0]) >= lengths[0] // 2) * mask
        arrays, read = {"tokens": tokens, "mask": mask, "types": types}, {}
        if model.is_encoder_decoder:
            read = {"input_ids": np.flip(tokens, 1), "attention_mask": mask}
            if "input_ids" not in (arguments := found[ENCODER].arguments):
                shapes = {key: (len(tokens), *map(int, argument.axes[1:])) for key, argument in arguments.items()}
                read = {key: rng.normal(0, 1, shape).astype(np.float32) for key, shape in shapes.items()}
        # The decoder inputs of an encoder–decoder are not padded.
        yield TestBatch(name, arrays, None if model.is_encoder_decoder else mask, read)


def _expected(run: Run, found: Mapping[str, Program], params: Arrays, rows: TestBatch) -> Arrays:
    """Computes the outputs of the JAX model for the test inputs `rows`, keyed by name. They are the reference for ONNX
    Runtime.
    """
    model, arrays = portable(run.model), rows.arrays
    if model.is_encoder_decoder:
        given = {name: _int32(array) for name, array in rows.read.items()}
        given = {**inputs_of(model, given), "tokens": _int32(arrays["tokens"])}
        return {"logits": jax.jit(lambda params, given: apply(model, params, **given).logits)(params, given)}
    if _has_cache(found):
        function = jax.jit(lambda params, tokens, mask: apply(model, params, tokens, mask).logits)
        return {"logits": function(params, _int32(arrays["tokens"]), _int32(arrays["mask"]))}
    given = {name: _int32(array) for name, array in _given(found[SINGLE], rows).items()}
    return jax.jit(found[SINGLE].function)(params, **given)


def _int32(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.float32 else array.astype(np.int32)


def _has_cache(found: Mapping[str, Program]) -> bool:
    return SINGLE in found and any(PAST in argument.axes for argument in found[SINGLE].arguments.values())


def _given(program: Program, rows: TestBatch) -> dict[str, np.ndarray]:
    """Selects from `rows` the input arrays of a program without a cache. Returns a dict that maps argument names to
    arrays.
    """
    parts = {"input_ids": "tokens", "attention_mask": "mask", "token_type_ids": "types", "prefix_mask": "types"}
    return {name: rows.arrays[name if name in rows.arrays else parts[name]] for name in program.arguments}


def _computed(run: Run, found: Mapping[str, Program], sessions: Sessions, rows: TestBatch) -> Iterator[Arrays]:
    """Runs the exported ONNX files on the given inputs. Yields a dict of outputs for each combination of files that can
    compute them.

    An encoder–decoder has two combinations: `decoder_model` followed by `decoder_with_past_model`, or
    `decoder_model_merged` for both steps. Other models have one.
    """
    if run.model.is_encoder_decoder:
        yield _answered(sessions, (DECODER, WITH_PAST), rows)
        yield _answered(sessions, (MERGED, MERGED), rows)
    elif _has_cache(found):
        yield _continued(sessions[SINGLE], rows)
    else:
        yield call(sessions[SINGLE], _given(found[SINGLE], rows))


def call(session: onnxruntime.InferenceSession, arrays: Arrays) -> dict[str, np.ndarray]:
    """Runs an ONNX Runtime session. Returns a dict that maps output names to arrays. Entries of `arrays` that the
    session does not take are ignored.
    """
    names = [output.name for output in session.get_outputs()]
    taken = {given.name for given in session.get_inputs()}
    given = {name: array for name, array in arrays.items() if name in taken}
    outputs: list[Any] = list(session.run(names, given))
    return dict(zip(names, outputs, strict=True))


def empty_past(session: onnxruntime.InferenceSession, rows: int) -> dict[str, np.ndarray]:
    """Returns empty arrays of cached keys and values, which a decoder takes in its first call, keyed by argument name.
    `rows` is the batch size.
    """
    found = {}
    for given in session.get_inputs():
        if given.name.startswith("past_key_values"):
            _, groups, _, head_dim = given.shape
            found[given.name] = np.zeros((rows, groups, 0, head_dim), np.float32)
    return found


def past_of(outputs: Arrays, kept: Arrays) -> dict[str, np.ndarray]:
    """Returns the cached keys and values for the next call of a decoder.

    Args:
      outputs: Outputs of the previous call, which may include updated keys and values.
      kept: Cached keys and values that the previous call received. They are used again if the call did not return new
        ones.
    """
    found = {name.replace("present", "past_key_values"): array for name, array in outputs.items() if "present" in name}
    return {**kept, **found}


def _continued(session: onnxruntime.InferenceSession, rows: TestBatch) -> Arrays:
    tokens, mask = rows.arrays["tokens"], rows.arrays["mask"]
    half, places = max(1, tokens.shape[1] // 2), np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape)
    past, logits = empty_past(session, len(tokens)), []
    for part, until in ((slice(0, half), half), (slice(half, None), tokens.shape[1])):
        if tokens[:, part].size:
            given = {"input_ids": tokens[:, part], "attention_mask": mask[:, :until], "position_ids": places[:, part]}
            outputs = call(session, given | past)
            logits.append(outputs["logits"])
            past = past_of(outputs, past)
    return {"logits": np.concatenate(logits, 1)}


def _answered(sessions: Sessions, names: tuple[str, str], rows: TestBatch) -> Arrays:
    tokens = rows.arrays["tokens"]
    half = max(1, tokens.shape[1] // 2)
    fixed = {"encoder_hidden_states": call(sessions[ENCODER], rows.read)["last_hidden_state"]}
    if "attention_mask" in rows.read:
        fixed["encoder_attention_mask"] = rows.read["attention_mask"]
    past, logits = empty_past(sessions[MERGED], len(tokens)), []
    for number, (name, part) in enumerate(zip(names, (slice(0, half), slice(half, None)), strict=True)):
        if tokens[:, part].size:
            branch = {"use_cache_branch": np.array([number > 0])}
            outputs = call(sessions[name], {"input_ids": tokens[:, part]} | fixed | branch | past)
            logits.append(outputs["logits"])
            past = past_of(outputs, past)
    return {"logits": np.concatenate(logits, 1)}


def flat(run: Run) -> dict[str, np.ndarray]:
    """Returns the parameters of the run as a dict that maps paths to float32 arrays."""
    return {path: np.asarray(array, np.float32) for path, array in parameters.flat(run.params).items()}
