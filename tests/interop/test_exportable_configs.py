"""The shipped configs whose models have a class in transformers, so that their runs can be exported as folders."""

import pytest
import tiny

import jaxformer as jf
from jaxformer.interop.huggingface.families import family_of_model
from jaxformer.interop.huggingface.families.clip import with_end
from jaxformer.interop.huggingface.image_forms import image_form
from jaxformer.interop.huggingface.text_forms import marian_form
from jaxformer.models.clip import Clip
from jaxformer.models.vit import Vit

OTHERS = {
    "detr_scenes": "its backbone embeds patches",
    "bert_base_cnn": "it scores sentences",
    "extractive_summarisation": "it scores sentences",
    "dalle_cc3m": "it is a Dalle",
    "dalle_cc3m_vae": "it is a DiscreteVae",
    "dalle_emoji": "it is a Dalle",
    "dalle_emoji_vae": "it is a DiscreteVae",
    "dit_b_imagenet": "it is a Dit",
    "dit_emoji": "it is a Dit",
    "fastspeech_spoken_bible": "it is a FastSpeech 2",
    "segmenter_scenes": "it is a Segmenter",
    "segmenter_vit_b_ade20k": "it is a Segmenter",
    "vivit_moving_scenes": "its encoder is factorised",
    "topics_small": "it reads the mean of the tokens' vectors",
}
"""Configs whose models no class of transformers computes; StableHLO and ONNX are for these."""
CONFIGS = sorted({path.stem for path in (tiny.ROOT / "configs").glob("*.py")} - set(OTHERS))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_can_be_exported(name):
    model = jf.load(str(tiny.ROOT / "configs" / f"{name}.py")).model
    model = marian_form(model) if getattr(model, "zero_start", False) else model
    model = image_form(model) if isinstance(model, Vit) else model
    model = with_end(model, 3) if isinstance(model, Clip) else model
    family, described = family_of_model(model)
    assert set(described["architectures"]) <= set(family.architectures)
