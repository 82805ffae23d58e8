"""Converts image encoders to equivalent ones that a class of the transformers library can represent."""

import dataclasses
from typing import Any

import numpy as np

from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.text_forms import replaced
from jaxformer.layers.patches import sinusoidal_2d
from jaxformer.layers.residual import ResidualBranch
from jaxformer.models.base import Model
from jaxformer.runs.run import Run

SCALES = tuple(f"transformer/blocks/{part}_residual/scale" for part in ("attention", "mlp"))
"""Paths of the LayerScale parameters."""


def image_form(model: Model) -> Model:
    """Returns an equivalent model whose parameters a transformers class can represent.

    Fixed position embeddings become learned ones. A classifier on the mean of the patches becomes a DINOv2 classifier.
    A DINOv2 classifier also reads the class token, for which its weights are set to 0, and has LayerScale, whose scales
    are set to 1. The outputs are the same, but further training with the transformers library would differ.
    """
    changes: dict[str, Any] = {}
    if model.position_embedding == "sinusoidal":
        changes["position_embedding"] = "learned"
    if _reads_mean(model):
        residual = model.transformer.residual or ResidualBranch()
        scale = 1.0 if residual.layer_scale is None else residual.layer_scale
        stack = dataclasses.replace(model.transformer, residual=ResidualBranch(scale, residual.drop_path))
        changes |= {"pooling": "first_and_mean", "transformer": stack}
    return dataclasses.replace(model, **changes) if changes else model


def image_params(model: Model, params: Any) -> Any:
    """Converts the parameters of `model` to those of `image_form(model)`."""
    arrays, form = parameters.flat(params), image_form(model)
    shapes = parameters.abstract(form)
    if model.position_embedding == "sinusoidal":
        side = model.image // model.patch
        table = np.asarray(sinusoidal_2d(side, side, model.transformer.width))
        leading = np.zeros((int(model.class_token), table.shape[1]), table.dtype)
        arrays["embeddings/position"] = np.concatenate([leading, table])
    if _reads_mean(model):
        kernel = np.asarray(arrays["head/kernel"])
        arrays["head/kernel"] = np.concatenate([np.zeros_like(kernel), kernel])
        arrays |= {path: np.ones(shapes[path], np.float32) for path in SCALES if path not in arrays}
    return parameters.nested(arrays)


def image_run(run: Run) -> Run:
    """Converts the model and the parameters of a run to the equivalent ones of `image_form`. Returns the run itself if
    its model already has that form.
    """
    form = image_form(run.model)
    return run if form is run.model else replaced(run, form, image_params(run.model, run.params), run.tokenizer)


def _reads_mean(model: Model) -> bool:
    """Returns whether the model classifies the mean of the patches, but also has a class token. `image_form` converts
    only such models, because a DINOv2 classifier, which it converts them to, has a class token.
    """
    return bool(model.labels) and model.pooling == "mean" and model.class_token and not model.pooler
