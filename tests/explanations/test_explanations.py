"""Explanations: attention, attributions and the logit lens, as functions and as a page."""

import re

import browser
import jax
import numpy as np
import pytest
import small_classifier
import small_vit
import small_writer
from PIL import Image
from small_bert import noisy_params, small_bert, small_transformer

import jaxformer as jf
from jaxformer import cli
from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.explanations.explanation import explain
from jaxformer.explanations.inside import logit_lens, look_inside, rollout
from jaxformer.explanations.page import CELLS, _halved, page
from jaxformer.models.gpt import Gpt
from jaxformer.parallel import sharding
from jaxformer.runs.run import Run

TEXT = "the plot is great but dull"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run of a classifier of texts with random parameters."""
    folder = tmp_path_factory.mktemp("reviews")
    small_classifier.write_reviews(folder)
    experiment = small_classifier.review_experiment(folder)
    params = noisy_params(experiment.model, np.zeros((1, 4), np.int32), seed=3)
    tokenizer = WordPiece(path=str(folder / "vocab.txt")).build(list, str(folder / "tokenizer"))
    mesh = sharding.make_mesh(sharding.Mesh(1), jax.devices()[:1])
    return Run(folder, experiment, tokenizer, 1, params, mesh)


@pytest.fixture
def without_answer(monkeypatch):
    """Leaves out the generation of text, which takes most of the time."""
    monkeypatch.setattr("jaxformer.explanations.explanation._answer", lambda run, prepared: None)


def apply(model, params, inputs, **settings):
    """The output of a model, compiled."""
    return jax.jit(lambda params, inputs: model.apply({"params": params}, **inputs, **settings))(params, inputs)


@pytest.fixture(scope="module")
def explained(classifier):
    return explain(classifier, TEXT)


@pytest.mark.slow
def test_integrated_gradients_sum_to_the_difference_of_the_scores(explained):
    assert explained.units[0] == "[CLS]" and explained.units[-1] == "[SEP]" and "great" in explained.units
    whole, baseline = explained.scores
    assert abs(whole - baseline) > 1e-3
    found = explained.attributions["integrated gradients"]
    assert found.shape == (len(explained.units),)
    assert found.sum() == pytest.approx(whole - baseline, rel=1e-3)


@pytest.mark.slow
def test_occlusion_is_the_fall_of_the_score_when_a_word_is_masked(classifier, explained):
    inputs = classifier.encode(TEXT)
    place = explained.units.index("great")
    index = explained.prediction.target.indices[0]
    masked = inputs["tokens"].copy()
    masked[0, place] = classifier.tokenizer.mask_id
    both = [
        apply(classifier.model, classifier.params, {**inputs, "tokens": tokens}).logits[0, 0, index]
        for tokens in (inputs["tokens"], masked)
    ]
    assert explained.attributions["occlusion"][place] == pytest.approx(float(both[0] - both[1]), abs=1e-4)
    assert explained.attributions["occlusion"][0] == 0, "special tokens are kept"


@pytest.mark.slow
def test_a_label_can_be_chosen_and_must_exist(classifier, explained):
    other = explain(classifier, TEXT, "bad" if explained.prediction.name.endswith("good") else "good")
    assert other.prediction.probability == pytest.approx(1 - explained.prediction.probability, abs=1e-5)
    with pytest.raises(InputError, match=r"--label ugly: the model has no such label; expected one of bad, good"):
        explain(classifier, TEXT, "ugly")


@pytest.mark.slow
def test_attention_is_that_of_the_model(classifier):
    backbone, inputs = classifier.model.backbone, classifier.encode(TEXT)
    inside = look_inside(classifier.model, classifier.params, inputs)
    (record,) = inside.stacks.values()
    assert list(inside.stacks) == list(classifier.model.stacks())
    own = apply(backbone, classifier.params["backbone"], inputs, return_attention=True)
    np.testing.assert_allclose(record.attention, own.attention, atol=1e-6)
    plain = apply(classifier.model, classifier.params, inputs)
    np.testing.assert_allclose(inside.output.logits, plain.logits, atol=1e-5)


def test_rollout_multiplies_the_layers():
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), size=(3, 2, 5, 4)).astype(np.float32)
    found = rollout(weights)
    expected = np.eye(4)
    for layer in weights[:, 1].mean(axis=1):
        expected = (layer + np.eye(4)) / 2 @ expected
    np.testing.assert_allclose(found[1], expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("norm_position", ["before", "after"])
def test_the_last_layer_of_the_logit_lens_has_the_logits_of_the_model(norm_position):
    model = Gpt(small_transformer(norm_position=norm_position), vocab=20, max_length=8)
    tokens = np.arange(6)[None] % 20
    params = noisy_params(model, tokens)
    inside = look_inside(model, params, {"tokens": tokens})
    lens = logit_lens(model, params, inside)
    assert lens.shape == (2, 1, 6, 20)
    np.testing.assert_allclose(lens[-1], inside.output.logits, atol=1e-4)
    assert np.abs(lens[0] - lens[1]).max() > 0.1


@pytest.mark.slow
def test_positions_selected_by_a_model_stay_selected():
    """BERT's pretraining computes only masked positions in its last block."""
    model = small_bert()
    tokens, at = np.arange(8)[None], np.array([[2, 5]])
    params = noisy_params(model, tokens)
    inside = look_inside(model, params, {"tokens": tokens, "masked_positions": at})
    plain = apply(model, params, {"tokens": tokens, "masked_positions": at})
    np.testing.assert_allclose(inside.output.prediction, plain.prediction, atol=1e-5)
    assert inside.stacks["transformer"].layers.shape == (2, 1, 8, 16)


@pytest.fixture(scope="module")
def pages(classifier, explained, tmp_path_factory):
    """Pages of a text classifier and of an image classifier."""
    home = tmp_path_factory.mktemp("pages")
    (home / "text.html").write_text(page(explained), encoding="utf-8")
    model = small_vit.VIT
    task = jf.data.LabelledImages(jf.data.ImageField(12, channels=1), labels=model.labels)
    objective = jf.objectives.ImageClassification()
    experiment = jf.Experiment(
        model=model,
        objective=objective,
        data=jf.data.Data(train=jf.data.ImageFolders("none"), task=task, batch=1),
        tokenizer=None,
        optimizer=classifier.experiment.optimizer,
        steps=1,
    )
    run = Run(home, experiment, None, 1, small_vit.noisy(model), classifier.mesh)
    Image.fromarray(small_vit.IMAGES[0, ..., 0]).save(home / "digit.png")
    found = explain(run, str(home / "digit.png"))
    assert found.attributions["integrated gradients"].shape == (12, 12)
    assert found.attributions["integrated gradients"].sum() == pytest.approx(
        found.scores[0] - found.scores[1], rel=1e-2
    )
    (view,) = found.attention
    assert view.grid == (3, 3) and view.keys[0] == "class token" and view.keys[-1] == "patch in row 3, column 3"
    (home / "picture.html").write_text(page(found), encoding="utf-8")
    return home


@pytest.mark.slow
def test_a_page_has_all_methods_and_no_requests(pages):
    for name in ("text", "picture"):
        text = (pages / f"{name}.html").read_text(encoding="utf-8")
        assert all(method in text for method in ("gradient × input", "integrated gradients", "occlusion"))
        assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert text.count('<div class="attention"><script') == 2, "heads, and rollout"


@browser.needed
@pytest.mark.slow
def test_hovering_over_a_map_shows_the_words(pages):
    with browser.opened() as shown:
        for name, words in (("text", "[CLS] → [CLS]"), ("picture", "class token → patch in row 1, column 1")):
            shown.show(pages / f"{name}.html", width=390, dark=True)
            assert shown.value("document.querySelectorAll('.attention canvas').length") >= 4
            shown.value(
                "(() => { const one = document.querySelector('.attention canvas'); const box = "
                "one.getBoundingClientRect(); one.dispatchEvent(new MouseEvent('mousemove', {clientX: box.left + 2, "
                "clientY: box.top + 2})); })()"
            )
            said = shown.value("document.getElementById('tip').textContent")
            assert said.startswith("layer 1, head 1: ") and words in said
            assert shown.value("document.documentElement.scrollWidth") <= 390
        assert not shown.problems and {url.partition(":")[0] for url in shown.requests} <= {"file", "data"}


def test_large_maps_are_averaged():
    weights = np.arange(2 * 1 * 5 * 4, dtype=np.float32).reshape(2, 1, 5, 4)
    small, queries, keys = _halved(weights, list("abcde"), [list("wxyz")])
    assert small.shape == (2, 1, 2, 2) and (queries, keys) == (["a", "c"], [["w", "y"]])
    assert small[0, 0, 0, 0] == weights[0, 0, :2, :2].mean()
    assert CELLS > 12 * 12 * 64 * 64


@pytest.mark.slow
def test_a_decoder_is_explained_at_its_next_token(tmp_path, without_answer):
    run = small_writer.small_run(small_writer.small_tokenizer(tmp_path))
    found = explain(run, "w1 w2 w3")
    assert found.prediction.target.positions == (len(found.units) - 1,)
    assert len(found.lens.tokens) == run.model.transformer.depth
    assert found.lens.tokens[-1][-1] in found.prediction.name
    assert "Logit lens" in page(found)


@pytest.mark.slow
def test_an_answer_is_explained_with_all_of_its_tokens(tmp_path, without_answer):
    run = small_writer.small_run(small_writer.small_tokenizer(tmp_path), jf.objectives.Seq2SeqLM())
    found = explain(run, "w1 w2 w3", "w7 w8 w9")
    assert found.prediction.name == "the answer 'w7 w8 w9'" and found.prediction.target.positions == (0, 1, 2)
    *_, across = found.attention
    assert across.name == "decoder, attention to the input"
    assert found.kind == "inputs" and [view.name for view in found.attention[:2]] == ["encoder", "decoder"]
    assert across.weights.shape == (2, 2, 3, len(found.units)) and across.keys == found.units
    whole, baseline = found.scores
    assert found.attributions["integrated gradients"].sum() == pytest.approx(whole - baseline, rel=2e-2)
    assert "attention to the input" in page(found)


def test_wrong_input_is_one_line(tmp_path, capsys):
    assert cli.main(["explain", str(tmp_path), "text", "--out", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a run's folder" in line
    assert cli.main(["explain", "nowhere", "text"]) == 2
    assert "--out" in capsys.readouterr().err
