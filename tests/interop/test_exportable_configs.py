"""The shipped configs whose models have a class in transformers, so that their runs can be exported as folders."""

import pytest
import tiny

import jaxformer as jf
from jaxformer.interop.huggingface.conventions import marian_form
from jaxformer.interop.huggingface.families import family_of_model

OTHERS = {
    "spam": "it reads the mean of the tokens' vectors",
    "tagging": "its blocks have their norms before",
    "topics": "it reads the mean of the tokens' vectors",
    "topics_small": "it reads the mean of the tokens' vectors",
    "transformer_base_wmt": "the epsilon of its norms is not Marian's",
    "transformer_big_wmt": "the epsilon of its norms is not Marian's",
    "vit_mae_digits_finetune": "its positions are sinusoids that do not train",
}
"""What no class of transformers computes; StableHLO and ONNX are for these."""
CONFIGS = sorted({path.stem for path in (tiny.ROOT / "configs").glob("*.py")} - set(OTHERS))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_can_be_exported(name):
    model = jf.load(str(tiny.ROOT / "configs" / f"{name}.py")).model
    model = marian_form(model) if getattr(model, "zero_start", False) else model
    family, described = family_of_model(model)
    assert set(described["architectures"]) <= set(family.architectures)
