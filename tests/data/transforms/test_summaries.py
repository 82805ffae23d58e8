"""Oracle labels are those of a plain greedy search by rouge-score, and chosen sentences share no trigram."""

import itertools

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from jaxformer.data.transforms import summaries

SCORER = RougeScorer(["rouge1", "rouge2"], use_stemmer=False)
WORDS = ["sea", "sun", "moon", "King", "dog", "x2"]


def random_document(seed):
    rng = np.random.default_rng(seed)

    def text():
        return " ".join(rng.choice(WORDS, rng.integers(1, 7))) + rng.choice([".", "!", " - it's", ""])

    return [text() for _ in range(rng.integers(1, 6))], f"{text()} {text()}"


def score(sentences, indices, summary):
    found = SCORER.score(summary, " ".join(sentences[index] for index in sorted(indices)))
    return found["rouge1"].fmeasure + found["rouge2"].fmeasure


def greedy(sentences, summary, most):
    """The same search, with rouge-score."""
    chosen = []
    while len(chosen) < most:
        tried = [(score(sentences, [*chosen, index], summary), -index) for index in range(len(sentences))]
        better, index = max(found for found in tried if -found[1] not in chosen) if len(chosen) < len(tried) else (0, 0)
        if better <= score(sentences, chosen, summary) + 1e-12:
            break
        chosen.append(-index)
    return sorted(chosen)


@pytest.mark.parametrize("seed", range(60))
def test_the_oracle_is_a_greedy_search_by_rouge(seed):
    sentences, summary = random_document(seed)
    for most in (1, 2, 4):
        found = summaries.oracle(sentences, summary, most)
        assert found == greedy(sentences, summary, most)
    best = max(itertools.combinations(range(len(sentences)), 1), key=lambda one: score(sentences, one, summary))
    first = summaries.oracle(sentences, summary, 1)
    assert score(sentences, first, summary) == pytest.approx(score(sentences, best, summary))


def test_the_oracle_is_near_the_best_of_all_subsets():
    shares = []
    for seed in range(60):
        sentences, summary = random_document(seed)
        subsets = itertools.chain.from_iterable(itertools.combinations(range(len(sentences)), k) for k in range(4))
        best = max(score(sentences, subset, summary) for subset in subsets)
        shares.append(score(sentences, summaries.oracle(sentences, summary, 3), summary) / max(best, 1e-9))
    assert max(shares) <= 1 + 1e-9 and np.mean(shares) > 0.95


@pytest.mark.parametrize("seed", range(10))
def test_rouge_is_that_of_rouge_score(seed):
    sentences, summary = random_document(seed)
    text = " ".join(sentences)
    found = SCORER.score(summary, text)
    for n in (1, 2):
        ours = summaries.rouge_f1(summaries.words(text), summaries.words(summary), n)
        assert ours == pytest.approx(found[f"rouge{n}"].fmeasure)


def test_nothing_in_common_gives_no_oracle():
    assert summaries.oracle(["the sea.", "the sun."], "a moon", 3) == []
    assert summaries.oracle([], "a moon", 3) == [] == summaries.oracle(["the sea."], "", 3)


def test_the_oracle_is_not_for_english_alone():
    assert summaries.oracle(["Das Meer.", "Die größten Türme."], "größte Türme", 2) == [1]


SENTENCES = ["A cat sat on a mat.", "Now the cat sat on it.", "Dogs ran.", "Then a CAT sat: on a mat!"]


def test_the_best_sentences_are_chosen_in_the_order_of_the_document():
    assert summaries.choose([0.1, 0.4, 0.3, 0.2], SENTENCES, 2, False) == [1, 2]
    assert summaries.choose(np.array([0.1, 0.1, 0.1]), SENTENCES, 2, False) == [0, 1], "of equal ones the first"
    assert summaries.choose([], SENTENCES, 2, True) == []


def test_trigrams_are_not_repeated():
    scores = [0.4, 0.3, 0.1, 0.35]
    assert summaries.choose(scores, SENTENCES, 3, False) == [0, 1, 3]
    assert summaries.choose(scores, SENTENCES, 3, True) == [0, 2], "the others share 'cat sat on'"
    assert summaries.choose([0.1, 0.2], ["Dogs ran.", "Dogs ran."], 2, True) == [0, 1], "there is no trigram"


def test_documents_are_split_at_lines_and_punctuation():
    text = "It is one. It is two!\n * a third\n\n---\n \nv1.2 is four"
    assert summaries.split_document(text) == ["It is one.", "It is two!", "* a third", "v1.2 is four"]
    assert summaries.split_document("--- !\n") == []
