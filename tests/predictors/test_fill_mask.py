"""Filling blanks: what is said is what the model computes, however the texts are batched."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import bert_params, lay_out, small_bert

from jaxformer.data.tokenizers import WordPiece
from jaxformer.errors import InputError
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.predictors import fill_mask

WORDS = ["in", "the", "beginning", "god", "created", "heaven", "and", "earth", "light", "dark", "was", "good"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##ness", "."]
MODEL = small_bert(vocab=len(PIECES) + 3, max_length=40)
PARAMS = bert_params(MODEL)
OBJECTIVE = MaskedLM()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "vocab.txt").write_text("\n".join(PIECES))
    return WordPiece(path=str(folder / "vocab.txt")).build(None, str(folder / "kept"))


@pytest.fixture
def predict(tokenizer, monkeypatch):
    # Probabilities of ids beyond the tokenizer's have no piece; a trained model never predicts them.
    biases = np.zeros(MODEL.vocab, np.float32)
    biases[len(PIECES) :] = -50
    params = PARAMS | {"masked_lm": PARAMS["masked_lm"] | {"bias": jnp.asarray(biases)}}

    def predict(texts):
        return OBJECTIVE.predictor(MODEL, params, tokenizer).predict(texts)

    predict.params = params
    return predict


def ids(*pieces):
    return np.array([PIECES.index(piece) for piece in pieces], np.int32)


@pytest.mark.slow
def test_each_blank_has_the_five_likeliest_pieces_with_their_probabilities(predict):
    (filled,) = predict(["In the beginning [MASK] created [MASK]."])
    tokens = ids("[CLS]", "in", "the", "beginning", "[MASK]", "created", "[MASK]", ".", "[SEP]")
    logits = MODEL.apply({"params": predict.params}, tokens[None]).logits[0]
    assert filled.text == "In the beginning [MASK] created [MASK]."
    assert len(filled.blanks) == 2
    for place, blank in zip((4, 6), filled.blanks, strict=True):
        probabilities = np.asarray(jax.nn.softmax(logits[place]))
        best = np.argsort(-probabilities)[:5]
        assert [piece for piece, _ in blank] == ["…ness" if i == PIECES.index("##ness") else PIECES[i] for i in best]
        np.testing.assert_allclose([probability for _, probability in blank], probabilities[best], atol=1e-5)


@pytest.mark.slow
def test_a_texts_answer_does_not_depend_on_the_texts_beside_it(predict):
    texts = [f"{'the ' * (i % 30)}{WORDS[i % 12]} was [MASK]" for i in range(fill_mask.ROWS + 2)]
    together = predict(texts)
    assert [filled.text for filled in together] == texts
    for index in (0, 5, fill_mask.ROWS - 1, fill_mask.ROWS + 1):
        (alone,) = predict([texts[index]])
        (one,), (other,) = alone.blanks, together[index].blanks
        assert [piece for piece, _ in one] == [piece for piece, _ in other]
        np.testing.assert_allclose([p for _, p in one], [p for _, p in other], atol=1e-5)


@pytest.mark.slow
def test_ids_without_a_piece_are_never_predicted(tokenizer):
    """Though they are the likeliest of the model's; the pieces share all of the probability."""
    biases = np.where(np.arange(MODEL.vocab) < len(PIECES), 0.0, 50.0).astype(np.float32)
    params = PARAMS | {"masked_lm": PARAMS["masked_lm"] | {"bias": jnp.asarray(biases)}}
    (filled,) = fill_mask.fill_masks(MODEL, params, tokenizer, ["in the [MASK]"], top=99)
    assert len(filled.blanks[0]) == len(PIECES)
    assert sum(probability for _, probability in filled.blanks[0]) == pytest.approx(1, abs=1e-5)
    tokens = ids("[CLS]", "in", "[MASK]", "[SEP]")[None]
    batch = {"tokens": tokens, "segments": np.ones_like(tokens), "masked_positions": np.array([[2]])}
    batch |= {"targets": ids("the")[None], "weights": np.ones((1, 1), np.float32)}
    (line,) = OBJECTIVE.predictor(MODEL, params, tokenizer).demonstrate(batch)
    assert line.startswith("in [")


def test_no_texts_no_answers(predict):
    assert predict([]) == []


def test_it_prints_the_text_and_a_line_a_piece():
    one = fill_mask.Filled("the [MASK]", ((("light", 0.5), ("dark", 0.25)),))
    assert str(one) == "the [MASK]\n   50.0%  light\n   25.0%  dark"
    two = dataclasses.replace(one, blanks=one.blanks * 2)
    assert str(two).splitlines()[1::3] == ["  blank 1", "  blank 2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("the light was good", "'the light was good': no [MASK] to fill; write [MASK] where a word is missing"),
        ("", "'': no [MASK] to fill; write [MASK] where a word is missing"),
        ("the [mask]", "'the [mask]': no [MASK] to fill; write [MASK] where a word is missing"),
        ("[MASK]" + " the" * 38, f"'[MASK]{' the' * 12} th...': 41 tokens; the model has positions for 40"),
        ("[MASK]\nthe " + "the " * 40, f"'[MASK]\\nthe {'the ' * 11}th...': 44 tokens; the model has positions for 40"),
    ],
)
def test_a_text_that_cannot_be_filled_is_refused_in_one_line(predict, text, message):
    with pytest.raises(InputError) as error:
        predict(["a good [MASK]", text])
    assert str(error.value) == message


def test_a_text_as_long_as_the_positions_is_filled(predict):
    (filled,) = predict(["[MASK]" + " the" * 37])
    assert len(filled.blanks[0]) == 5


class TestDemonstrate:
    def batch(self):
        """'the light was good' with two blanks, and a row that the data left empty."""
        example = {
            "tokens": ids("[CLS]", "the", "[MASK]", "[SEP]", "was", "good", "##ness", "[SEP]"),
            "token_types": np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32),
            "masked_positions": np.array([2, 5], np.int32),
            "targets": ids("light", "good"),
            "weights": np.ones(2, np.float32),
            "cls_positions": np.zeros(1, np.int32),
            "next_sentence": np.zeros(1, np.int32),
            "next_sentence_weights": np.ones(1, np.float32),
        }
        return lay_out([[example], []], length=12, predictions=3, examples_per_row=1)

    def always(self, piece):
        """Parameters with which every guess is `piece`."""
        bias = jnp.zeros(MODEL.vocab).at[PIECES.index(piece)].set(1e4)
        return PARAMS | {"masked_lm": PARAMS["masked_lm"] | {"bias": bias}}

    @pytest.mark.slow
    def test_it_shows_right_and_wrong_guesses_in_brackets(self, tokenizer):
        lines = OBJECTIVE.predictor(MODEL, self.always("light"), tokenizer).demonstrate(self.batch())
        assert lines == ["the [light] was [light, was good]ness", ""]

    @pytest.mark.slow
    def test_it_shows_a_few_rows_only(self, tokenizer):
        batch = {name: np.repeat(array, 5, axis=0) for name, array in self.batch().items()}
        assert len(OBJECTIVE.predictor(MODEL, self.always("dark"), tokenizer).demonstrate(batch)) == 4

    @pytest.mark.slow
    def test_its_guesses_are_those_of_the_model_on_the_whole_batch(self, tokenizer):
        """With all inputs of the batch, the sentences' types among them, as in training."""
        batch = self.batch()
        types = 3 * jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.float32)
        bias = jnp.zeros(MODEL.vocab).at[len(PIECES) :].set(-1e4)
        params = PARAMS | {
            "embeddings": PARAMS["embeddings"] | {"token_type": types},
            "masked_lm": PARAMS["masked_lm"] | {"bias": bias},
        }

        def guesses(batch):
            logits = jax.jit(MODEL.apply)({"params": params}, **OBJECTIVE.inputs(batch)).logits
            return np.asarray(logits[0, :2].argmax(-1))

        untyped = guesses(batch | {"token_types": 0 * batch["token_types"]})
        assert (guesses(batch) != untyped).all(), "the types must matter here"
        line, _ = OBJECTIVE.predictor(MODEL, params, tokenizer).demonstrate(batch)
        first, second = (tokenizer.piece(int(guess)) for guess in guesses(batch))
        assert f"the [{first}, was light] was [{second}, was good]" in line
