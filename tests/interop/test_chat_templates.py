"""Chat templates: an export's gives the tokens that dialogues were trained on, and an imported one is kept."""

import dataclasses
import json

import numpy as np
import pytest
import transformers
from small_bert import noisy_params
from test_hf_tokenizers import TEXTS

from jaxformer.data.examples import Visit
from jaxformer.data.tasks.dialogue import Dialogue, DialogueTemplate
from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.models import ExportPlan, export_hf
from jaxformer.interop.huggingface.runs import export_run, from_pretrained, import_run
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.causal_lm import CausalLM

MESSAGES = [
    {"role": "system", "content": "Be brief. "},
    {"role": "user", "content": "What was the light called?\n"},
    {"role": "assistant", "content": "(1) Day."},
    {"role": "user", "content": "…and the 'darkness'?"},
    {"role": "assistant", "content": "night; 2 of 3"},
]
TOKENIZERS = {
    "bytes": ByteLevelBpe(400),
    "wordpiece": WordPiece(300, lowercase=False),
    "unigram": SentencePiece(300),
    "bpe": SentencePiece(300, "bpe"),
}


def exported(tokenizer, out, dialogue, beginning=False):
    stack = dataclasses.replace(Gpt().transformer, depth=1, width=12, heads=3, dtype="float32")
    model = Gpt(stack, vocab=tokenizer.vocab_size, max_length=34)
    params = noisy_params(model, np.zeros((1, 4), np.int32))
    export_hf(model, params, tokenizer, out, ExportPlan(dialogue=dialogue, add_bos=beginning))
    return transformers.AutoTokenizer.from_pretrained(out)


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("names", [{}, {"user": "Q:\n", "assistant": '"A" ', "system": "{{ S }}"}])
def test_a_chat_template_gives_the_tokens_of_training(kind, names, tmp_path):
    tokenizer = TOKENIZERS[kind].build(lambda: TEXTS, str(tmp_path / "kept"))
    dialogue, beginning = DialogueTemplate(**names), bool(names)
    theirs = exported(tokenizer, tmp_path / "out", dialogue, beginning)
    task = Dialogue(500, template=dialogue)
    (example,) = task.examples(task.encode({"messages": MESSAGES}, tokenizer), Visit(tokenizer, None, None))
    before = [tokenizer.bos_id] if beginning else []
    expected = [*before, *example["tokens"], example["targets"][-1]]
    assert theirs.apply_chat_template(MESSAGES, tokenize=True, return_dict=False) == expected
    asked = theirs.apply_chat_template(MESSAGES[1:2], add_generation_prompt=True, tokenize=True, return_dict=False)
    objective = CausalLM(template=dialogue, beginning=beginning)
    (prompt,) = objective.predictor(None, None, tokenizer).prompts([MESSAGES[1]["content"]])
    assert asked == prompt.tolist()
    with pytest.raises(Exception, match="the roles are system, user, assistant"):
        theirs.apply_chat_template([{"role": "tool", "content": "x"}])


def test_an_answer_begins_after_a_space(tmp_path):
    """Byte-level tokens of a word with a space before it differ from those without: training has the former."""
    tokenizer = TOKENIZERS["bytes"].build(lambda: TEXTS, str(tmp_path / "kept"))
    before, answer = DialogueTemplate().encode(("assistant", "the light"), tokenizer)
    assert tokenizer.decode(before) == "Assistant:" and tokenizer.decode(answer[:-1]) == " the light"
    predictor = CausalLM(template=DialogueTemplate()).predictor(None, None, tokenizer)
    assert predictor._decode_output(before, answer) == "\nAssistant: the light"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["config", "file", "files"])
def test_an_imported_chat_template_is_kept(form, tmp_path):
    tokenizer = TOKENIZERS["bytes"].build(lambda: TEXTS, str(tmp_path / "kept"))
    exported(tokenizer, tmp_path / "out", None)
    path, text = tmp_path / "out" / "tokenizer_config.json", "{{ messages[0]['content'] }}é{{ eos_token }}"
    assert "chat_template" not in json.loads(path.read_text())
    if form == "config":
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": text}))
    else:
        (tmp_path / "out" / "chat_template.jinja").write_text(text)
    if form == "files":
        (tmp_path / "out" / "additional_chat_templates").mkdir()
        (tmp_path / "out" / "additional_chat_templates" / "tool_use.jinja").write_text("{{ 'tools' }}")
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template
    import_run(tmp_path / "out", tmp_path / "run", certificate=False)
    export_run(tmp_path / "run", tmp_path / "again", certificate=False)
    export_run(from_pretrained(tmp_path / "out"), tmp_path / "third", certificate=False)
    for folder in ("again", "third"):
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / folder)
        assert theirs.chat_template == expected
        assert theirs.apply_chat_template(MESSAGES[:1], tokenize=False) == "Be brief. é[SEP]"


def test_roles_need_names_of_their_own():
    with pytest.raises(InputError, match="expected a different, non-empty text for each role"):
        DialogueTemplate(user="A:", assistant="A:")
