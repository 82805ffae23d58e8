"""Classification of images by given texts, and retrieval, through `predict` and `rank`."""

import re

import numpy as np
import pytest
from PIL import Image
from small_clip import SIGMOID, SOFTMAX, small_run

from jaxformer import cli, run_commands
from jaxformer.errors import InputError

TEXTS = ["a red dot", "green", "the end of a line"]


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("model", [SOFTMAX, SIGMOID], ids=["softmax", "sigmoid"])
def test_texts_are_ranked_by_the_scores_of_the_model(model, pictures, tmp_path):
    run, path = small_run(model, tmp_path), str(pictures / "1.png")
    answer = run.rank(path, TEXTS)
    logits = np.asarray(run.model.apply({"params": run.params}, **run.encode([path, *TEXTS])).logits)[0]
    softmax, sigmoid = np.exp(logits) / np.exp(logits).sum(), 1 / (1 + np.exp(-logits))
    expected = softmax if model is SOFTMAX else sigmoid
    order = np.argsort(-logits)
    assert answer.request == path and [name for name, _ in answer.ranking] == [TEXTS[i] for i in order]
    np.testing.assert_allclose([share for _, share in answer.ranking], expected[order], atol=1e-5)
    first = f"{answer.ranking[0][1]:6.1%}  {answer.ranking[0][0]}"
    assert str(answer).splitlines()[:2] == [path, f"  {first}"]


def test_the_images_of_a_folder_are_ranked_for_each_text(pictures, tmp_path):
    run = small_run(SOFTMAX, tmp_path)
    answers = run.rank(TEXTS, pictures)
    assert [answer.request for answer in answers] == TEXTS
    paths = [str(pictures / f"{number}.png") for number in range(3)]
    for answer in answers:
        assert sorted(name for name, _ in answer.ranking) == paths
    vectors = run.embed([*TEXTS, *paths])
    best = (vectors[:3] @ vectors[3:].T).argmax(1)
    assert [answer.ranking[0][0] for answer in answers] == [paths[i] for i in best]


def test_predict_gives_vectors_of_images_and_texts_in_their_order(pictures, tmp_path):
    run, path = small_run(SOFTMAX, tmp_path), str(pictures / "0.png")
    text, image = run.predict([TEXTS[0], path])
    assert (text.text, image.text) == (TEXTS[0], path)
    assert text.cosines[0] == (path, pytest.approx(float(text.vector @ image.vector), abs=1e-5))
    assert np.linalg.norm(image.vector) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("request_", "candidates", "line"),
    [
        ("a text", ["another"], "'another': expected images as candidates for a text, not texts"),
        ("missing.png", ["a text"], "missing.png: cannot be decoded"),
        ("a text", ["missing.png"], "missing.png: cannot be decoded"),
        ("a text", [], "no candidates: expected at least one to rank"),
    ],
)
def test_what_cannot_be_compared(request_, candidates, line, tmp_path):
    with pytest.raises(InputError, match=re.escape(line)):
        small_run(SOFTMAX, tmp_path).rank(request_, candidates)


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(InputError, match="this folder has no image; expected files such as"):
        small_run(SOFTMAX, tmp_path).rank("a text", [str(tmp_path)])


@pytest.mark.slow
def test_the_command_line_ranks_texts_and_images(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_commands, "opened", lambda *_, **__: small_run(SOFTMAX, tmp_path))
    assert cli.main(["predict", "RUN", str(pictures / "0.png"), "--among", *TEXTS]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(pictures / "0.png") and sorted(line[10:] for line in lines[1:]) == sorted(TEXTS)
    assert cli.main(["predict", "RUN", "green", "--json", "--among", str(pictures)]) == 0
    assert '"ranking": [{"candidate": "' in capsys.readouterr().out
    assert cli.main(["predict", "RUN", "green", "--num_samples", "2", "--among", str(pictures)]) == 2
    assert "--among samples no answers; leave one of them out" in capsys.readouterr().err
