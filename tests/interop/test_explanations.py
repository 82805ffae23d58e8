"""Attention equals that of transformers, and integrated gradients those of captum, on the exported model."""

import numpy as np
import pytest
import small_classifier
import torch
import transformers
from small_bert import noisy_params

from jaxformer.explanations import attributions
from jaxformer.explanations.attributions import Features, Target
from jaxformer.explanations.inside import look_inside
from jaxformer.interop.huggingface.models import export_hf
from jaxformer.models.classifier import Classifier

TOKENS = np.array([[2, 9, 12, 5, 17, 3]], np.int32)
BASELINE = np.array([[2, 4, 4, 4, 4, 3]], np.int32)
TARGET = Target((1,), (0,))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A classifier with its parameters, and the model of transformers that it is exported to."""
    folder = tmp_path_factory.mktemp("exported") / "hf"
    model = Classifier(small_classifier.small_backbone(), small_classifier.LABELS)
    params = noisy_params(model, TOKENS, seed=5)
    export_hf(model, params, None, folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    return model, params, theirs.eval()


@pytest.fixture(scope="module")
def ours(both):
    """Features of the tokens and of the baseline, and arguments of the functions."""
    model, params, _ = both
    features, inputs = Features.of(model), {"tokens": TOKENS}
    x, baseline = (attributions.read_features(features, params, {"tokens": tokens}) for tokens in (TOKENS, BASELINE))
    return (features, TARGET, params, inputs), x, baseline


@pytest.mark.slow
def test_attention_equals_that_of_transformers(both):
    model, params, theirs = both
    (record,) = look_inside(model, params, {"tokens": TOKENS}).stacks.values()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(TOKENS).long(), output_attentions=True).attentions
    np.testing.assert_allclose(record.attention, np.stack([one.numpy() for one in expected]), atol=1e-5)


@pytest.mark.slow
def test_gradient_times_input_equals_that_of_autograd(both, ours):
    theirs = both[2]
    arguments, x, _ = ours
    found = {}

    def keep(module, inputs, output):
        output.retain_grad()
        found["embeddings"] = output

    handle = theirs.bert.embeddings.register_forward_hook(keep)
    theirs(torch.from_numpy(TOKENS).long()).logits[0, 1].backward()
    handle.remove()
    embeddings = found["embeddings"]
    np.testing.assert_allclose(x, embeddings.detach().numpy(), atol=1e-5)
    expected = (embeddings.grad * embeddings).detach().numpy()
    np.testing.assert_allclose(attributions.gradient_times_input(*arguments, x), expected, atol=1e-4)


@pytest.mark.slow
def test_integrated_gradients_equal_those_of_captum(both, ours):
    captum = pytest.importorskip("captum.attr", reason="needs captum: pip install 'jaxformer[captum]'")
    theirs = both[2]
    arguments, x, baseline = ours
    layer = captum.LayerIntegratedGradients(lambda tokens: theirs(tokens).logits, theirs.bert.embeddings)
    expected = layer.attribute(
        torch.from_numpy(TOKENS).long(),
        baselines=torch.from_numpy(BASELINE).long(),
        target=1,
        n_steps=attributions.STEPS,
    )
    actual = attributions.integrated_gradients(*arguments, x, baseline)
    assert np.abs(np.asarray(actual)).max() > 1e-2
    np.testing.assert_allclose(actual, expected.detach().numpy(), atol=1e-4)
