"""Prompts from which a JAX model and a PyTorch model generate tokens, to compare them."""

from collections.abc import Sequence

import numpy as np
import torch

from jaxformer.decoding.generate import Prompt
from jaxformer.interop.huggingface.families import bridge_of
from jaxformer.interop.parity.batches import ComparisonBatch
from jaxformer.interop.parity.compare import tensor_of
from jaxformer.models.base import Model

LENGTH = 8
"""Maximum number of tokens of a prompt."""


def prompt_arguments(model: Model, prompt: Prompt | np.ndarray) -> dict[str, torch.Tensor]:
    """Converts a prompt (token ids, or a `Prompt` with inputs such as an image) to keyword arguments of the `generate`
    method in the transformers library.
    """
    if isinstance(prompt, Prompt):
        arrays = {name: array[None] for name, array in prompt.inputs.items()}
        found = bridge_of(model).call_arguments(model, arrays)
        return {argument: tensor_of(array) for argument, array in found.items()}
    ids = torch.from_numpy(prompt).long()[None]
    return {"inputs": ids, "attention_mask": torch.ones_like(ids)}


def prompts_of(model: Model, rows: Sequence[ComparisonBatch], start: int | None) -> list[Prompt | np.ndarray]:
    """Returns prompts to generate tokens from: two per batch in `rows`. For text models, they are the first `LENGTH`
    tokens of the first two texts. For encoder–decoders that read images or sounds, they are the first two of these, and
    decoding starts with the token `start`.
    """
    found: list[Prompt | np.ndarray] = []
    for one in rows:
        if not model.is_encoder_decoder or "inputs" in model.inputs():
            found += list(one.arrays["inputs" if model.is_encoder_decoder else "tokens"][:2, :LENGTH])
            continue
        names = [name for name in model.inputs() if one.arrays.get(name, np.zeros(1)).ndim > 2]
        for row in range(2):
            inputs = {name: one.arrays[name][row] for name in names}
            found.append(Prompt(np.array([start], np.int32), inputs))
    return found
