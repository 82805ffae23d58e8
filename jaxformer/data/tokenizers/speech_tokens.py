"""Special tokens of speech recognizers: start, languages, tasks and timestamps (Radford et al. 2022, §2.3)."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Literal

from jaxformer.data.tokenizers.tokenizer import Tokenizer
from jaxformer.errors import InputError

SpeechTask = Literal["transcribe", "translate"]
"""Kind of output of a multilingual model: the words in the language that is spoken, or their English translation."""

START, NO_TIMESTAMPS, PREVIOUS = "<|startoftranscript|>", "<|notimestamps|>", "<|startofprev|>"
NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
"""Names of the token for windows without speech, in new and old vocabularies."""
SECONDS = 0.02
"""Seconds between the times of two successive timestamp tokens."""
_LANGUAGE = re.compile(r"<\|([a-z]{2,3})\|>")


@dataclasses.dataclass(frozen=True)
class SpeechTokens:
    """Ids of the special tokens of a speech recognizer's vocabulary."""

    start: int
    """Token with which every output starts."""
    end: int
    """Token that ends an output. All tokens of words have lower ids."""
    no_timestamps: int
    """Token of the prefix for an output without timestamps. The id after it is the timestamp of 0 s."""
    no_speech: int | None
    """Token whose probability after the start token is that of a window without speech."""
    previous: int | None
    """Token before the text of the previous window."""
    tasks: Mapping[str, int]
    """Tokens of the tasks `transcribe` and `translate`."""
    languages: Mapping[str, int]
    """Tokens of the languages, by code such as `de`."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "SpeechTokens":
        """Finds the tokens in the vocabulary of a tokenizer.

        Raises:
          InputError: If the vocabulary does not have the start token or the token for no timestamps.
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
        """Timestamp token of 0 s."""
        return self.no_timestamps + 1

    def prefix(self, language: str | None, task: SpeechTask = "transcribe", timestamps: bool = False) -> list[int]:
        """Returns the tokens before the words of an output.

        Args:
          language: code of the language. None for a model without language and task tokens.
          task: what the model writes.
          timestamps: whether the output has timestamps.

        Raises:
          InputError: If the vocabulary does not have the language or the task.
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
        """Returns the tokens of words, without special tokens and timestamps."""
        return [int(token) for token in tokens if token < self.end]
