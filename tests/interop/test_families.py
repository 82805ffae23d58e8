"""Every family from a folder that transformers wrote: the same numbers, and the same tensors when written again."""

import dataclasses

import numpy as np
import pytest
import torch
from hf_models import FAMILIES, auto_class, redrawn, run, run_ours, saved
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from jaxformer.errors import InputError
from jaxformer.interop.huggingface.adapters import open_folder
from jaxformer.interop.huggingface.families.family import differences
from jaxformer.interop.huggingface.models import ExportPlan, export_hf, import_hf, load
from jaxformer.layers.attention import Attention
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.gpt import Gpt

TOLERANCE = 1e-5
PRE_NORM = Transformer(8, 1, 2, norm=LayerNorm(1e-5))
few = settings(
    max_examples=3,
    derandomize=True,
    phases=[Phase.generate],  # A failing example is small already; shrinking it would compile hundreds of models.
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


UNSCALED = ("mt5",)
"""Families whose head may be a copy of the embeddings, though the config says that it is not tied."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_transformers_and_tensors_survive_the_round_trip(name, tmp_path_factory):
    @few
    @given(data=st.data())
    def check(data):
        home = tmp_path_factory.mktemp(name)
        theirs = redrawn(data.draw(FAMILIES[name]), seed=1)
        folder = saved(theirs, home / "theirs")
        imported = load(open_folder(folder))
        actual, expected = run_ours(imported.model, imported.params, theirs), run(theirs)
        assert actual.keys() >= expected.keys()
        for what, array in expected.items():
            np.testing.assert_allclose(actual[what], array, atol=TOLERANCE, rtol=TOLERANCE, err_msg=what)
        export_hf(imported.model, imported.params, None, home / "ours", ExportPlan(origin=imported.origin))
        before, after = (load_file(path / "model.safetensors") for path in (folder, home / "ours"))
        if name in UNSCALED and "lm_head.weight" not in before:
            # transformers 5 leaves a tied head out, and 4.57 would draw one.
            before["lm_head.weight"] = before["shared.weight"]
        assert before.keys() == after.keys()
        assert all(before[key].tobytes() == after[key].tobytes() for key in before)
        again = auto_class(theirs).from_pretrained(home / "ours").eval()
        assert type(again) is type(theirs)
        for what, array in run(again).items():
            # transformers gives a pooler of random weights to what has none.
            if what in expected and not (what == "pooled" and "pooled" not in actual):
                np.testing.assert_allclose(array, expected[what], atol=1e-6, err_msg=what)
        model, _ = import_hf(home / "ours")
        assert not differences(model, imported.model)

    check()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_survives_the_round_trip(dtype, tmp_path):
    theirs = redrawn(FAMILIES["qwen3"].example(), seed=1).to(getattr(torch, dtype))
    folder = saved(theirs, tmp_path / "theirs")
    model, params = import_hf(folder)
    export_hf(model, params, None, tmp_path / "ours", ExportPlan(dtype=dtype))
    before, after = (open_folder(path).tensors for path in (folder, tmp_path / "ours"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert str(tensor.dtype) == dtype and tensor.read().tobytes() == after[name].read().tobytes()


def test_a_number_beyond_float16_is_refused(tmp_path):
    model, params = import_hf(saved(FAMILIES["gpt2"].example(), tmp_path / "theirs"))
    params["embeddings"]["token"] = params["embeddings"]["token"].at[0, 0].set(70_000.0)
    with pytest.raises(InputError, match=r"float16: transformer.wte.weight has values beyond 65,504"):
        export_hf(model, params, None, tmp_path / "ours", ExportPlan(dtype="float16"))
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (EncoderDecoder(PRE_NORM, PRE_NORM), "model.encoder.norm_position: .before. here, .after. in marian"),
        (
            Gpt(Transformer(8, 1, 2, norm=LayerNorm(1e-5, bias=False))),
            "model.transformer.norm.bias: False here, True in",
        ),
        (
            Gpt(Transformer(8, 1, 2, norm_position="after")),
            "model.transformer.norm_position: .after. here, .before. in gpt2",
        ),
    ],
)
def test_what_no_family_computes_is_refused(model, line, tmp_path):
    with pytest.raises(InputError, match=line):
        export_hf(model, {}, None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_periods_are_compared_by_what_each_block_has():
    near = Attention(window=3)
    period = (Variant(near), Variant())

    def model(depth, attention=Attention(), period=()):
        return Gpt(Transformer(16, depth, 2, attention=attention, period=period))

    assert not differences(model(4, period=period), model(4, period=2 * period))
    assert not differences(model(3, period=period), model(3, near, (Variant(), Variant(Attention(head_dim=8)))))
    assert not differences(model(1, period=period), model(1, near))
    (found,) = differences(model(4, period=period), model(4, period=(*period, Variant())))
    assert found.path == "model.transformer.period"
    assert differences(model(2, period=period), model(2))


def test_sizes_left_to_be_derived_are_those_written_out():
    short, long = Gpt(Transformer(16, 1, 2)), Gpt(Transformer(16, 1, 2, dropout=0.3, dtype="bfloat16", remat="full"))
    assert not differences(short, long)
    assert list(map(str, differences(short, dataclasses.replace(short, tie_embeddings=False)))) == [
        "model.tie_embeddings: True in the run, False now"
    ]
