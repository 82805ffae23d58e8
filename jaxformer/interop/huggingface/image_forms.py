"""Encoders of images in a form that a class of transformers has, which computes the same."""

import dataclasses
from typing import Any

import numpy as np

from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.text_forms import replaced
from jaxformer.layers.patches import sinusoidal_2d
from jaxformer.layers.residual import ResidualBranch
from jaxformer.models.vit import Vit
from jaxformer.runs.run import Run

SCALES = tuple(f"transformer/blocks/{part}_residual/scale" for part in ("attention", "mlp"))
"""Paths of layer scale's parameters."""


def image_form(model: Vit) -> Vit:
    """The model that computes what `model` does, with parameters where transformers' classes have them.

    Fixed positions become learned ones. A classifier of the patches' mean becomes DINOv2's, which reads the class
    token too, with weights of 0, and has layer scale, of 1. Both matter only to training that continues elsewhere.
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


def image_params(model: Vit, params: Any) -> Any:
    """The parameters of `image_form(model)` that compute what `params` do in `model`."""
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
    """The run of `image_form`; itself if its model has that form."""
    form = image_form(run.model)
    return run if form is run.model else replaced(run, form, image_params(run.model, run.params), run.tokenizer)


def _reads_mean(model: Vit) -> bool:
    """Whether it is a classifier of the patches' mean; one without a class token has no class in transformers."""
    return bool(model.labels) and model.pooling == "mean" and model.class_token and not model.pooler
