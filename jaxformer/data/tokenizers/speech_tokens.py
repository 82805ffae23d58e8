"""Special tokens of speech recognizers: start, languages, tasks and timestamps (Radford et al. 2022, §2.3)."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.errors import InputError

SpeechTask = Literal["transcribe", "translate"]
"""Kind of output of a multilingual speech recognizer: a transcript in the spoken language, or an English translation.
"""

START, NO_TIMESTAMPS, PREVIOUS = "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""Names of the token that marks sound without speech: the current name, and the name in older Whisper vocabularies."""
SECONDS = 0.02
"""Time difference between consecutive timestamp tokens, in seconds."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclasses.dataclass(frozen=True)
class SpeechTokens:
    """Ids of the special tokens of a speech recognizer's vocabulary."""

    start: int
    """Id of the token with which every output starts."""
    end: int
    """Id of the EOS token. Tokens of ordinary text have lower ids, and other special tokens have higher ids."""
    no_timestamps: int
    """Id of the token that precedes an output without timestamps. The next id is the timestamp token of 0 s."""
    no_speech: int | None
    """Id of the token that marks sound without speech. Its probability after the start token is the probability of no
    speech. None if the vocabulary lacks it.
    """
    previous: int | None
    """Id of the token that precedes the text of the previous window of sound, given as context. None if the vocabulary
    lacks it.
    """
    tasks: Mapping[str, int]
    """Maps the task names `transcribe` and `translate` to token ids. Omits tasks that the vocabulary lacks."""
    languages: Mapping[str, int]
    """Maps the codes of the languages in the vocabulary, such as `de`, to token ids."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpeechTokens":
        """Finds the special tokens in the vocabulary of a tokenizer.

        Raises:
          InputError: If the vocabulary lacks the start token or the token for outputs without timestamps.
        """
        ids = {piece: number for number, piece in enumerate(tokenizer.pieces) if piece.startswith("<|")}
        for name in (START, NO_TIMESTAMPS):
            if name not in ids:
                raise InputError(
                    f"tokenizer: the vocabulary of {tokenizer.vocab_size} pieces has no {name}; expected the tokenizer "
                    "of a speech recognizer, such as that of openai/whisper-small"
                )
        known = {match[1]: number for name, number in ids.items() if (match := _LANGUAGE.fullmatch(name))}
        # Every language comes between the start token and the tasks; other names of the same form do not.
        last = min((ids[name] for name in ("<|translate|>", "<|transcribe|>") if name in ids), default=ids[START])
        return cls(
            start=ids[START],
            end=tokenizer.eos_id,
            no_timestamps=ids[NO_TIMESTAMPS],
            no_speech=next((ids[name] for name in NO_SPEECH if name in ids), None),
            previous=ids.get(PREVIOUS),
            tasks={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate") if f"<|{task}|>" in ids},
            languages={code: number for code, number in known.items() if ids[START] < number < last},
        )

    @property
    def first_timestamp(self) -> int:
        """Id of the timestamp token of 0 s. Later timestamps have the following ids, 0.02 s apart."""
        return self.no_timestamps + 1

    def prefix(self, language: str | None, task: SpeechTask = "transcribe", timestamps: bool = False) -> list[int]:
        """Returns the ids of the special tokens that precede the text of an output.

        Args:
          language: code of the spoken language, such as `de`. If None, as for an English-only model, there are no
            language and task tokens.
          task: whether the output is a transcript or an English translation.
          timestamps: whether the output has timestamps.

        Raises:
          InputError: If the vocabulary has no token for the language or the task.
        """
        tokens = [self.start]
        if language is not None:
            if language not in self.languages:
                known = ", ".join(self.languages) or "none"
                raise InputError(f"language={language!r}: the tokenizer has no such language; expected one of {known}")
            if task not in self.tasks:
                raise InputError(f"task={task!r}: the tokenizer has no token for it; expected an empty language")
            tokens += [self.languages[language], self.tasks[task]]
        return tokens if timestamps else [*tokens, self.no_timestamps]

    def words(self, tokens: Sequence[int]) -> list[int]:
        """Removes special tokens and timestamps from the token ids of an output."""
        return [int(token) for token in tokens if token < self.end]
