"""Answers of every kind are saved as HTML pages."""

import json

import pytest

from jaxformer import html_page
from jaxformer.predictors.clip_labels import VideoLabels, Window
from jaxformer.predictors.fill_mask import Filled

FILLED = Filled("a <b> [MASK]", ((("word", 0.75), ("other", 0.25)),), "a <b> word")
VIDEO = VideoLabels("clip.mp4", (("runs", 0.5), ("jumps", 0.25)), (Window(0.0, 1.0, "runs", 0.5),))


@pytest.mark.parametrize("answers, words", [([FILLED], "a &lt;b&gt; [MASK]"), ([VIDEO, VIDEO], "clip.mp4")])
def test_a_page_has_all_answers_and_no_requests(answers, words, tmp_path):
    path = tmp_path / "page.html"
    if len(answers) == 1:
        answers[0].save(path)
    else:
        type(answers[0]).save_all(answers, path)
    text = path.read_text(encoding="utf-8")
    assert html_page.is_page(text) and text.count("<figure>") == len(answers) and words in text
    assert "src=" not in text and "href=" not in text


def test_other_files_are_json(tmp_path):
    FILLED.save(tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text())["text"] == FILLED.text
