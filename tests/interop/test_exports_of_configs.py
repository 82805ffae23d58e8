"""Every model and objective that a config has can be exported as ONNX and as StableHLO programs."""

import types

import numpy as np
import onnx_ir
import onnxruntime
import pytest
from test_configs import CONFIGS, shrunk

from jaxformer import config
from jaxformer.errors import InputError
from jaxformer.interop.export.onnx_build import build
from jaxformer.interop.export.onnx_programs import programs
from jaxformer.interop.export.stablehlo_program import forward_pass
from jaxformer.interop.huggingface import parameters
from jaxformer.models.classifier import Classifier
from jaxformer.models.wav2vec2 import Wav2Vec2


def kind_of(experiment):
    """The settings that distinguish the programs of two configs."""
    model = experiment.model
    parts = (model.backbone, model.pooling) if isinstance(model, Classifier) else (model, None)
    prompt = getattr(experiment.objective, "prompt", None)
    return type(parts[0]).__name__, parts[1], type(experiment.objective).__name__, prompt


EXPERIMENTS = {path.stem: config.load(path) for path in CONFIGS}
KINDS = {kind_of(experiment): name for name, experiment in EXPERIMENTS.items()}
"""One config of each kind."""


def params_of(model):
    return {path: np.zeros(shape, np.float32) for path, shape in parameters.abstract(model).items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(KINDS.values()))
def test_every_kind_of_config_has_programs(name):
    experiment = config.override(EXPERIMENTS[name], shrunk(EXPERIMENTS[name]))
    params = params_of(experiment.model)
    run = types.SimpleNamespace(model=experiment.model, objective=experiment.objective)
    if isinstance(experiment.model, Wav2Vec2):
        for export in (programs, lambda run: forward_pass(run.model, params, "float32")):
            with pytest.raises(InputError, match="model=Wav2Vec2: masked frames of waveforms cannot be an argument"):
                export(run)
        return
    found = programs(run)
    assert "model" in found or "encoder_model" in found
    for program in found.values():
        model = build(program.function, params, program.arguments, program.limits)
        session = onnxruntime.InferenceSession(onnx_ir.to_proto(model).SerializeToString())
        assert [given.name for given in session.get_inputs()] == list(program.arguments)
    assert forward_pass(experiment.model, params, "float32").out_avals
