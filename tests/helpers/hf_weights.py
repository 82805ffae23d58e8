"""Converts models of transformers to ours, by the tables with which folders are imported.

Parity is against transformers' own passes, forward and backward, so that no mistake in a table could hide.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
import torch

from jaxformer.interop.formats.stored import LazyTensor
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.models import load
from jaxformer.layers.transformer import Transformer
from jaxformer.models.t5 import T5

TOLERANCE = 1e-5
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}


def as_ours(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor] | None = None) -> tuple[nn.Module, Any]:
    """Our module of a model of transformers, float32 and without dropout, and its parameters.

    Args:
      model: theirs.
      tensors: what to map instead of its parameters, by their names: their gradients, for example.
    """
    if tensors is None:
        tensors = dict(model.named_parameters())
        tensors |= {name: tensor for name, tensor in model.named_buffers() if name == "final_logits_bias"}
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    stored = {name: LazyTensor(array.dtype, array.shape, lambda array=array: array) for name, array in arrays.items()}
    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    ours = load(Folder(Path(type(model).__name__), config, {}, stored))
    stacks = {name: getattr(ours.model, name, None) for name in ("transformer", "encoder", "decoder")}
    quiet = {
        name: dataclasses.replace(stack, **QUIET) for name, stack in stacks.items() if isinstance(stack, Transformer)
    }
    if isinstance(ours.model, T5):
        quiet["max_length"] = 1 << 20  # Relative positions have no end.
    return dataclasses.replace(ours.model, **quiet), ours.params


def redraw(model: torch.nn.Module, seed: int, size: float = 0.14) -> torch.nn.Module:
    """The model with random parameters around 0, or 1 for norms' scales: weights of 0 or 1 would hide mistakes.

    Gemma's norms store their scales less 1.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: tensor for name, tensor in model.named_parameters() if "embed_positions" not in name}
    drawn |= {name: tensor for name, tensor in model.named_buffers() if name == "final_logits_bias"}
    with torch.no_grad():
        for name, tensor in drawn.items():
            is_scale = name.endswith(("norm.weight", "layernorm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight"))
            is_scale &= model.config.model_type != "gemma3_text"
            tensor.normal_(0, size, generator=generator).add_(float(is_scale))
    return model.eval()


def assert_same(ours, theirs, segments) -> None:
    """Both have the same logits where there are tokens, and the same losses, with smoothed labels and without."""
    (logits, *losses), (expected_logits, *expected_losses) = ours, theirs
    real = segments > 0
    np.testing.assert_allclose(logits[real], expected_logits.detach().numpy()[real], rtol=TOLERANCE, atol=TOLERANCE)
    for loss, expected in zip(losses, expected_losses, strict=True):
        assert float(loss) == pytest.approx(expected.item(), abs=TOLERANCE)
    assert abs(losses[0] - losses[1]) > 20 * TOLERANCE, "smoothing counts"
