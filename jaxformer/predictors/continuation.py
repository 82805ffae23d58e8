"""Continues texts and dialogues with a causal language model."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxformer.data.tasks.turns import Turn, TurnTemplate
from jaxformer.data.tokenizers.tokenizer import Ids
from jaxformer.decoding.generate import generate, stream
from jaxformer.decoding.scoring import Score, score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.models.gpt import Gpt
from jaxformer.predictors.base import Answer, Chats, Predictor, Replies, ScoresContinuations
from jaxformer.predictors.padding import stacked

MAX_PROMPT_TOKENS = 48
"""Maximum length in tokens of the prompts that a run prints with their continuations at the end of training. They
are the starts of held-out texts."""


@dataclasses.dataclass(frozen=True)
class Continued(Answer):
    """A text and its generated continuation."""

    text: str
    """Text to continue, as given in the request."""
    continuation: str
    """Generated text. Starts with a space if it starts a new word."""

    def __str__(self) -> str:
        return self.text + self.continuation


@dataclasses.dataclass(frozen=True, eq=False)
class Continuation(Predictor[Gpt], Chats, Replies, ScoresContinuations):
    """Predictor that continues texts or, if `template` is set, generates answers in dialogues."""

    decoding: Decoding
    """Settings for generating tokens."""
    prompt: Literal["text", "prefix", "inputs"] = "text"
    """Kind of prompt, which determines its attention and whether it ends in an EOS token. See `CausalLM.prompt`."""
    beginning: bool = False
    """Whether prompts start with the BOS token of the tokenizer."""
    template: TurnTemplate | None = None
    """Template that formats requests as dialogues. If None, the model continues the texts as they are."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Tokenizes texts as prompts, and returns them as arguments of the model: padded arrays [texts, length], keyed
        by argument name.
        """
        batch = stacked(self.prompts(texts))
        return batch if self.prompt == "text" else batch | {"prefix": batch["segments"] > 0}

    def predict(self, texts: Sequence[str]) -> list[Continued]:
        """Continues each text.

        Raises:
          InputError: If a text has no tokens or exceeds the maximum length of the model.
        """
        prompts = self.prompts(texts)
        outputs = self.write(prompts)
        return [
            Continued(text, self._decode_output(prompt, output))
            for text, prompt, output in zip(texts, prompts, outputs, strict=True)
        ]

    def stream(self, text: str) -> Iterator[str]:
        """Yields the text, followed by parts of its continuation as soon as they are generated.

        Raises:
          InputError: If `predict` would raise it for this text, or `decoding` requests beam search.
        """
        (prompt,) = self.prompts([text])
        pieces = self._stream(prompt, lambda output: self._decode_output(prompt, output))
        first = next(pieces)  # Before the text, which is not shown if the prompt is refused.
        yield text
        yield first
        yield from pieces

    def chat(self, turns: Sequence[Turn]) -> Iterator[str]:
        """Yields parts of the answer to a dialogue as soon as they are generated. With beam search, yields the whole
        answer at once.

        Raises:
          InputError: If there is no template, the template refuses the dialogue, or the dialogue exceeds the maximum
            length of the model.
        """
        prompt = self._chat_prompt(turns)
        if self.decoding.num_beams > 1:
            yield self._decode_answer(self.write([prompt])[0])
            return
        yield from self._stream(prompt, self._decode_answer)

    def count_tokens(self, turns: Sequence[Turn]) -> int:
        """Returns the number of tokens in the prompt for the next answer of a dialogue."""
        return len(self._chat_prompt(turns))

    def _chat_prompt(self, turns: Sequence[Turn]) -> np.ndarray:
        if self.template is None:
            raise InputError("a dialogue needs a template; set objective.template, or give a chat template")
        return self._begun(self.template.encode_prompt(turns, self.tokenizer))

    def _stream(self, prompt: np.ndarray, decode: Callable[[np.ndarray], str]) -> Iterator[str]:
        """Yields parts of the text that `decode` returns for the tokens generated so far, int32 [tokens]."""
        output, shown = np.zeros(0, np.int32), ""
        for tokens in stream(self.model, self.params, prompt, self._ending, self.tokenizer.eos_id, **self._settings):
            output = np.append(output, tokens)
            written = decode(output)
            # The last token may be only part of a multi-byte character.
            if written.startswith(shown) and not written.endswith("\N{REPLACEMENT CHARACTER}"):
                yield written[len(shown) :]
                shown = written
        yield decode(output)[len(shown) :]

    def reply(self, request: str) -> Iterator[str]:
        """Yields parts of the continuation of a text or, in a dialogue, of the answer to it, without the text before
        it. With beam search, yields all of it at once.
        """
        self.prompts([request])  # Refuses an empty request.
        if self.template is not None:
            yield from self.chat(self.template.turns(request))
            return
        if self.decoding.num_beams > 1:
            (answer,) = self.predict([request])
            yield answer.continuation.lstrip()
            return
        pieces, started = self.stream(request), False
        next(pieces)  # The text.
        for piece in pieces:
            rest = piece if started else piece.lstrip()
            if rest:
                started = True
                yield rest

    def log_likelihoods(self, texts: Sequence[str], continuations: Sequence[str]) -> list[Score]:
        """Computes the log-probability of each continuation given the text before it. `texts` and `continuations` have
        the same length.

        It makes no difference whether a space between the two belongs to the text or to the continuation. A text that
        is too long is truncated at its start. If a text is empty, its continuation follows the BOS token if `beginning`
        is set, otherwise the EOS token.

        Raises:
          InputError: If a continuation has no tokens or exceeds the maximum length of the model.
        """
        pairs = [self._tokenize_pair(*pair) for pair in zip(texts, continuations, strict=True)]
        room = [max(1, self.model.max_length + 1 - len(continuation)) for _, continuation in pairs]
        prompts = [prompt[-most:] for (prompt, _), most in zip(pairs, room, strict=True)]
        return score(self.model, self.params, prompts, [pair[1] for pair in pairs], **self._settings)

    def prompts(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Tokenizes texts as prompts: integers [tokens] for each text. Names such as `<extra_id_0>` in a text become
        sentinel tokens.

        Raises:
          InputError: If a prompt would be empty.
        """
        after = [self.tokenizer.eos_id] if self.prompt == "inputs" else []
        begun = [self._begun(self._read(text)) for text in texts]
        for text, tokens in zip(texts, begun, strict=True):
            if not len(tokens):
                raise InputError(f"{text!r}: an empty prompt; expected some text to continue")
        return [np.append(tokens, after).astype(np.int32) for tokens in begun]

    def _begun(self, tokens: np.ndarray) -> np.ndarray:
        """Adds the BOS token to a prompt if `beginning` is set, unless the template has added it."""
        if not self.beginning or (self.template is not None and self.template.writes_beginning):
            return tokens
        return np.append(self.tokenizer.bos_id, tokens).astype(np.int32)

    def _read(self, text: str) -> np.ndarray:
        if self.template is None:
            return self.tokenizer.encode_with_sentinels(text)
        return self.template.prompt(text, self.tokenizer) if text.strip() else np.zeros(0, np.int32)

    def write(self, prompts: Sequence[Ids]) -> list[np.ndarray]:
        """Generates new tokens after each prompt, a sequence of token ids. Returns only the new tokens."""
        return generate(self.model, self.params, prompts, self._ending, self.tokenizer.eos_id, **self._settings)

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Continues the start of the first text of a held-out batch, and formats the prompt and its continuation for
        display.
        """
        segments, tokens = batch["segments"][0], batch["tokens"][0]
        first = tokens[segments == 1]
        if not len(first):
            return []
        given = min(len(first) // 2 + 1, MAX_PROMPT_TOKENS)
        if "prefix" in batch:
            given = batch["prefix"][0][segments == 1].sum()
        elif self.template is not None:  # Up to the first answer.
            given = np.argmax(batch["weights"][0][segments == 1] > 0) + 1
        prompt = first[:given]
        (output,) = self.write([prompt])
        return [f"{self.tokenizer.decode(prompt)} […]{self._decode_output(prompt, output)}"]

    @property
    def _ending(self) -> Decoding:
        """Settings for generating tokens, with the tokens that end an answer in a dialogue."""
        if self.template is None:
            return self.decoding
        ends, known = self.template.end_ids(self.tokenizer), self.decoding.eos_token_ids or ()
        if not known and ends == (self.tokenizer.eos_id,):
            return self.decoding
        return dataclasses.replace(self.decoding, eos_token_ids=tuple(dict.fromkeys((*known, *ends))))

    @property
    def _settings(self) -> dict[str, Any]:
        return {"prefix": self.prompt != "text", "pieces": self.tokenizer.vocab_size}

    def _tokenize_pair(self, text: str, continuation: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenizes a text and its continuation as they would occur together. Returns the tokens of the prompt and
        those of the continuation.
        """
        if self.template is not None:
            turns = self.template.turns(text)
            exchange = self.template.encode_exchange(turns, continuation.strip(), self.tokenizer)
            ends = np.flatnonzero(np.isin(exchange.answer, self.template.end_ids(self.tokenizer)))
            answer = exchange.answer[: ends[-1]] if len(ends) else exchange.answer
            return self._begun(exchange.prompt), answer  # Without the end token.
        if self.prompt == "inputs":
            return self.prompts([text])[0], self.tokenizer.encode(continuation)
        given = text.rstrip()
        continuation = text[len(given) :] + continuation
        prompt, whole = (self.tokenizer.encode_with_sentinels(part) for part in (given, given + continuation))
        size = min(len(prompt), len(whole) - 1) if given else 0
        before = [self.tokenizer.bos_id] if self.beginning else [] if size else [self.tokenizer.eos_id]
        return np.concatenate([before, whole[:size]]).astype(np.int32), whole[size:]

    def _decode_output(self, prompt: np.ndarray, output: np.ndarray) -> str:
        """Decodes generated tokens to a text that can be appended to the text of the prompt. It starts with a space or
        a line break if one is needed.
        """
        if self.template is not None:
            return self.template.show_answer(self._decode_answer(output))
        if self.prompt == "inputs":
            return "\n  " + self.tokenizer.decode(output)
        # Decode both together, because the output tokens do not determine whether a space precedes them.
        before, whole = self.tokenizer.decode(prompt), self.tokenizer.decode(np.append(prompt, output))
        if not whole.startswith(before):  # The output may complete a multi-byte character of the prompt.
            before = before.rstrip("\N{REPLACEMENT CHARACTER}")
        return whole.removeprefix(before) if whole.startswith(before) else f" {self.tokenizer.decode(output)}"

    def _decode_answer(self, output: np.ndarray) -> str:
        return self.tokenizer.decode(output).lstrip()
