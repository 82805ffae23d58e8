"""A language model that answers dialogues: prompts as its rows have them, answers to the end of a turn."""

import numpy as np
import pytest
from small_writer import small_run, small_tokenizer

from jaxformer.data.examples import Visit
from jaxformer.data.pipeline import lanes
from jaxformer.data.tasks.dialogue import Dialogue, DialogueTemplate
from jaxformer.decoding.scoring import score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.objectives.causal_lm import CausalLM

TEMPLATE = DialogueTemplate("w20", "w21", "w22")
TASK = Dialogue(16, template=TEMPLATE)
TURNS = [{"role": "user", "content": "w1 w2"}, {"role": "assistant", "content": "w3"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return small_tokenizer(tmp_path_factory.mktemp("vocabulary"))


@pytest.mark.slow
def test_a_dialogue_is_answered_as_it_was_learned(tokenizer):
    """Prompts are the tokens before the answer in the rows of `Dialogue`, and the answer ends with its turn."""
    run = small_run(tokenizer, CausalLM(decoding=Decoding(max_new_tokens=4, temperature=0), template=TEMPLATE))
    (example,) = TASK.examples(TASK.encode({"messages": TURNS}, tokenizer), Visit(tokenizer, None, None))
    (prompt,) = run.predictor.prompts(["w1 w2"])
    given = int(np.argmax(example["weights"])) + 1
    np.testing.assert_array_equal(prompt, example["tokens"][:given])
    (output,) = run.predictor.write([prompt])
    assert str(run.predict("w1 w2")) == f"w1 w2\nw22 {tokenizer.decode(output)}"
    assert "".join(run.stream("w1 w2")) == str(run.predict("w1 w2"))
    assert "".join(run.reply("w1 w2")) == tokenizer.decode(output).lstrip()
    (found,) = run.log_likelihoods(["w1 w2"], ["w3"])
    expected = score(run.model, run.params, [prompt], [tokenizer.encode("w3")])[0]
    assert found.log_probability == pytest.approx(expected.log_probability, abs=1e-4)
    batch = lanes.empty_batch(1, TASK.row)
    lanes.write_row(batch, 0, [example], TASK.row)
    (shown,) = run.predictor.demonstrate(batch)
    assert shown == f"{tokenizer.decode(prompt)} […]\nw22 {tokenizer.decode(output)}"
    with pytest.raises(InputError, match=r"objective.prompt=inputs: expected text with a template"):
        CausalLM(prompt="inputs", template=TEMPLATE)
