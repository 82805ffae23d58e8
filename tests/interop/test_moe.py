"""Mixtral and Qwen3-MoE: the layouts of their tensors, what is refused, and the certificate."""

import json

import numpy as np
import pytest
from hf_models import FAMILIES, redrawn, run, run_ours, saved
from safetensors.numpy import load_file, save_file
from small_bert import assert_trees_identical

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.models import export_hf, import_hf, load
from jaxformer.interop.parity.certificate import certify

NAMES = ["mixtral", "qwen3_moe"]
TOLERANCE = 1e-5


@pytest.fixture(params=NAMES)
def theirs(request):
    return redrawn(FAMILIES[request.param].example(), seed=1)


@pytest.mark.slow
def test_fused_tensors_are_read_as_those_of_each_expert(theirs, tmp_path):
    """transformers 5 keeps the experts' maps in one tensor, and saves them so on request."""
    folder = saved(theirs, tmp_path / "apart")
    fused = tmp_path / "fused"
    theirs.save_pretrained(fused, save_original_format=False)
    names = load_file(fused / "model.safetensors").keys()
    assert "model.layers.0.mlp.experts.gate_up_proj" in names and not any(".experts.0." in name for name in names)
    apart, together = load(open_folder(folder)), load(open_folder(fused))
    assert apart.model == together.model
    assert_trees_identical(apart.params, together.params)
    actual, expected = run_ours(together.model, together.params, theirs)["logits"], run(theirs)["logits"]
    np.testing.assert_allclose(actual, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_missing_expert_is_named(name, tmp_path):
    folder = saved(FAMILIES[name].example(), tmp_path / "theirs")
    tensors = load_file(folder / "model.safetensors")
    gone = next(tensor for tensor in tensors if ".experts.1." in tensor)
    tensors.pop(gone)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=f"missing: {gone}"):
        import_hf(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("qwen3_moe", "decoder_sparse_step", 2, "decoder_sparse_step=2 is not supported; expected 1"),
        ("qwen3_moe", "mlp_only_layers", [0], "mlp_only_layers=.* is not supported"),
        ("mixtral", "num_experts_per_tok", 99, "mlp.top_k=99: expected at most"),
        ("mixtral", "sliding_window", 3, "sliding_window=3 is not supported"),
    ],
)
def test_what_is_not_here_is_refused(name, field, value, message, tmp_path):
    folder = saved(FAMILIES[name].example(), tmp_path / "theirs")
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=message):
        import_hf(folder)


@pytest.mark.slow
def test_exports_have_a_certificate_with_the_gradients_of_every_expert(theirs, tmp_path):
    model, params = import_hf(saved(theirs, tmp_path / "theirs"))
    export_hf(model, params, None, tmp_path / "ours")
    found = certify(model, params, None, tmp_path / "ours")
    assert found.architecture == type(theirs).__name__ and found.passed
    assert any("gradient" in line.what for line in found.lines)
