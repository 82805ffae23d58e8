"""Converts the tensors of a Hugging Face checkpoint to the parameters of a JAX model and back, one tensor at a time, so
that memory never contains the model twice.
"""

import collections
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jaxformer.errors import InputError
from jaxformer.interop.formats.stored import FLOATS, LazyTensor, ahead
from jaxformer.interop.huggingface.table import MatchedTensors, Table, TensorMapping, match
from jaxformer.models.base import Model

ALIGNMENT = 64
"""Alignment of arrays in memory, in bytes. JAX can use a NumPy array with this alignment without copying it."""
AT_ONCE = 2
"""Number of tensors that are read in parallel."""
STRIP = 64
"""Number of elements along the last axis that `copy_into` copies at a time if the axis order changes. Copying in such
strips reuses cache lines.
"""


def abstract(model: Model) -> dict[str, tuple[int, ...]]:
    """Returns a dict that maps the paths of the model's parameters to their shapes, without creating the parameters."""
    tree = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), **model.abstract_inputs()))["params"]
    return {path: leaf.shape for path, leaf in flat(tree).items()}


def flat(params: Any) -> dict[str, Any]:
    """Flattens a tree of parameters to a dict. Its keys are paths, such as `transformer/blocks/mlp/up/kernel`."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def nested(leaves: Mapping[str, Any]) -> Any:
    """Converts a dict that maps paths to parameters to a tree. Inverse of `flat`."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def read(
    table: Table, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, LazyTensor], dtype: np.dtype, where: str
) -> Any:
    """Reads the parameters of a model from the tensors of a Hugging Face checkpoint. Returns a tree of arrays on the
    default device.

    Args:
      table: Table of the model family, which maps parameters to tensors.
      shapes: Shapes of the parameters, keyed by path.
      stored: Stored tensors, keyed by name.
      dtype: Dtype of the parameters.
      where: Text at the start of error messages, such as a path.

    Raises:
      InputError: If tensors are missing, unknown, or have the wrong shape or dtype, or if copies of a tied tensor
        differ.
    """
    matched = match(table, shapes, {name: tensor.shape for name, tensor in stored.items()}, where)
    _check_types(matched, stored, where)
    for name, copy in matched.copies:
        if not _same(stored[name].read(), stored[copy].read()):
            raise InputError(f"{where}: {copy} differs from {name}; this model has one tensor for both")
    for full_name, compute in table.known.items():
        name = full_name if full_name in stored else full_name.removeprefix(table.prefix)
        if callable(compute) and name in stored:
            kept = stored[name].read().astype(np.float32)
            if not np.allclose(kept, compute(kept.shape), atol=1e-3 if stored[name].dtype != np.float32 else 1e-5):
                raise InputError(
                    f"{where}: {name} differs from the values that this model computes, and cannot be imported"
                )
    waiting = collections.Counter(path for mapping in matched.mappings for path in mapping.paths)
    arrays = {
        path: _aligned(shape, dtype) for path, shape in shapes.items()
    }  # Memory is allocated when they are written.
    _fill_unused(arrays, matched.mappings)
    # Parameters without a stored tensor, such as the norm of a stack with one block and no first norm, are complete.
    done = {path: jax.device_put(arrays.pop(path)) for path in shapes if path not in waiting}

    wrong: list[str] = []

    def fill(mapping, name):
        tensor = stored[name].read()
        if not _is_finite(tensor):
            wrong.append(name)
        for path, part in zip(mapping.paths, mapping.to_ours(tensor), strict=True):
            copy_into(arrays[path][(*mapping.index, ...)], part)

    with ThreadPoolExecutor(AT_ONCE) as others:
        for mapping, _ in zip(matched.mappings, others.map(fill, matched.mappings, matched.names), strict=True):
            waiting.subtract(mapping.paths)
            done |= {path: jax.device_put(arrays.pop(path)) for path in mapping.paths if not waiting[path]}
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        warnings.warn(f"{where}: {min(wrong)}{more}: has values that are NaN or infinite", stacklevel=2)
    return nested(done)


def _is_finite(tensor: np.ndarray) -> bool:
    """Returns whether all values of a tensor are finite. A sum is faster than a comparison of each value."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(tensor, dtype=np.float32)
    return bool(np.isfinite(total)) or bool(np.isfinite(tensor).all())


def written(mappings: Sequence[TensorMapping], arrays: Mapping[str, Any], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yields the tensors to write, in the layout of Hugging Face checkpoints.

    Args:
      mappings: Tensors to write, in order, and the parameters that they contain.
      arrays: Parameters, keyed by path.
      dtype: Type of the tensors.

    Raises:
      InputError: If a value exceeds the range of the dtype.
    """
    groups = [list(group) for _, group in itertools.groupby(mappings, key=lambda mapping: mapping.paths)]
    # All layers of a stack are transferred at once, while the previous stack is written.
    stacks = ahead([np.asarray(arrays[path]) for path in group[0].paths] for group in groups)
    for mapping, stack in ((mapping, stack) for group, stack in zip(groups, stacks, strict=True) for mapping in group):
        parts = [array[(*mapping.index, ...)] for array in stack]
        if len(parts) == 1 and mapping.order == tuple(range(len(mapping.order))) and parts[0].dtype == dtype:
            yield parts[0].reshape(mapping.shape)  # No copy: the token embeddings are often the largest tensor.
            continue
        tensor = np.empty(mapping.shape, dtype)
        for ours, theirs in zip(parts, mapping.to_ours(tensor), strict=True):
            with np.errstate(over="ignore"):
                copy_into(theirs, ours)
        check_range(tensor, mapping.name)
        yield tensor


def check_range(array: np.ndarray, name: str) -> None:
    """Raises InputError if `array` is float16 and has infinite or NaN values, because values exceeded the range of
    float16 when they were converted. `name` is the name of the tensor.
    """
    if array.dtype == np.float16 and not np.isfinite(array).all():
        raise InputError(f"--dtype float16: {name} has values beyond 65,504; expected bfloat16 or float32")


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """Copies `source` to `target`. Copies in strips if the memory order of their axes differs, which is faster."""
    axes = sorted(range(target.ndim), key=lambda axis: -target.strides[axis])  # Writing memory sequentially is fastest.
    target, source = _merged(target.transpose(axes), source.transpose(axes))
    if target.ndim < 2 or (target.strides[-2] > target.strides[-1]) == (source.strides[-2] > source.strides[-1]):
        target[...] = source
        return
    for first in range(0, target.shape[-1], STRIP):
        target[..., first : first + STRIP] = source[..., first : first + STRIP]


def _merged(target: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns views of two arrays of equal shape, in which successive axes that are contiguous in both arrays are
    merged, so that a copy needs fewer loops.
    """
    axis = 0
    while axis + 1 < target.ndim:
        if all(array.strides[axis] == array.strides[axis + 1] * array.shape[axis + 1] for array in (target, source)):
            shape = (*target.shape[:axis], target.shape[axis] * target.shape[axis + 1], *target.shape[axis + 2 :])
            target, source = target.reshape(shape), source.reshape(shape)
        else:
            axis += 1
    return target, source


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    size = int(np.prod(shape)) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _fill_unused(arrays: Mapping[str, np.ndarray], mappings: Sequence[TensorMapping]) -> None:
    """Initialises parameters that have no tensor in Hugging Face checkpoints because they have no effect, such as the
    first norm of ModernBERT. Scales are set to 1, and all others to 0.
    """
    first: dict[str, int] = {}
    for mapping in mappings:
        for path in mapping.paths:
            first.setdefault(path, mapping.index[0] if mapping.index else 0)
    for path, array in arrays.items():
        if unused := first.get(path, None if array.ndim == 0 else len(array)):
            array[:unused] = 1.0 if path.endswith("/scale") else 0.0


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=True)


def _check_types(matched: MatchedTensors, stored: Mapping[str, LazyTensor], where: str) -> None:
    for name in matched.names:
        if stored[name].dtype not in FLOATS.values():
            raise InputError(f"{where}: {name} is {stored[name].dtype}; expected one of {', '.join(FLOATS)}")
