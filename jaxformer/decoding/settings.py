"""Settings of text generation: maximum lengths, sampling, beam search, and logits processors."""

import dataclasses
from typing import Literal

from jaxformer import fields
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class TimestampRules:
    """Rules for the timestamp tokens of a speech recognizer (Radford et al. 2022). An output starts with a timestamp.
    Each segment of text is between two timestamps, which do not decrease. If all timestamps together are more likely
    than the most likely text token, a timestamp is generated.
    """

    first: int
    """Id of the timestamp token of 0 s. The following ids are later times. The id before it, which marks an output
    without timestamps, is never generated.
    """
    latest_start: int | None = 50
    """Maximum value of the first timestamp of an output, in units of 0.02 s. If None, there is no maximum."""

    def __post_init__(self):
        fields.at_least("decoding.timestamps.first", self.first, 1)
        fields.at_least("decoding.timestamps.latest_start", self.latest_start, 0)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Settings of text generation: greedy decoding by default, sampling if `temperature` > 0, beam search if
    `num_beams` > 1.

    Settings have the same definitions as those of `generate` in the Hugging Face transformers library, and equal
    settings give equal tokens. A setting with its default value adds nothing to the compiled program.
    """

    max_new_tokens: int | None = 64
    """Maximum number of tokens to generate. If None, `max_length` limits the output instead."""
    temperature: float = 0.0
    """Number by which logits are divided before sampling. Lower values give less random outputs. 0 selects greedy
    decoding.
    """
    top_k: int | None = None
    """Number of most likely tokens to sample from. If None, all tokens."""
    top_p: float = 1.0
    """Nucleus sampling (Holtzman et al. 2020): samples from the smallest set of most likely tokens whose total
    probability reaches this value. 1 disables it.
    """
    min_p: float = 0.0
    """Minimum probability of a token to sample, as a fraction of the probability of the most likely token. 0 disables
    it.
    """
    repetition_penalty: float = 1.0
    """Penalty for tokens that already occurred (Keskar et al. 2019): divides their logits if positive, and multiplies
    them if negative. Above 1, repetitions are less likely. 1 disables it.
    """
    num_beams: int = 1
    """Number of hypotheses that beam search keeps at each step. 1 disables beam search."""
    length_penalty: float = 1.0
    """Exponent p of beam search, which ranks complete hypotheses by log-probability / length ** p. Values above 0 favor
    longer hypotheses.
    """
    early_stopping: bool | Literal["never"] = False
    """Condition that ends a beam search: True when `num_beams` hypotheses are complete, False when a better hypothesis
    is unlikely, "never" when a better hypothesis is impossible.
    """
    seed: int = 0
    """Random seed for sampling."""
    max_length: int | None = None
    """Maximum total number of tokens if `max_new_tokens` is None: prompt and output for a decoder, decoder start tokens
    and output for an encoder–decoder.
    """
    min_new_tokens: int = 0
    """Minimum number of tokens to generate before an EOS token is allowed."""
    min_length: int = 0
    """Minimum total number of tokens before an EOS token is allowed, if `min_new_tokens` is 0. Counts the same tokens
    as `max_length`.
    """
    eos_token_ids: tuple[int, ...] | None = None
    """Ids of the tokens that end an output. If None, the EOS token of the tokenizer."""
    typical_p: float = 1.0
    """Typical sampling (Meister et al. 2022): samples from the tokens whose surprisal is closest to the entropy, up to
    this total probability. 1 disables it.
    """
    epsilon_cutoff: float = 0.0
    """Minimum probability of a token to sample (Hewitt et al. 2022). 0 disables it."""
    eta_cutoff: float = 0.0
    """Minimum probability of a token to sample, which is lowered if the entropy of the distribution is high (Hewitt et
    al. 2022). 0 disables it.
    """
    encoder_repetition_penalty: float = 1.0
    """Factor that makes tokens of the prompt more likely: multiplies their logits if positive, and divides them if
    negative. 1 disables it.
    """
    no_repeat_ngram_size: int = 0
    """Length of the n-grams that may occur only once in the output (Paulus et al. 2018). For a decoder, n-grams of the
    prompt count too. 0 disables it.
    """
    encoder_no_repeat_ngram_size: int = 0
    """Length of the n-grams of the prompt that must not occur in the output. 0 disables it."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids that are never generated."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated as the first token."""
    forced_bos_token_id: int | None = None
    """Id of the token to generate first. Applies only if exactly one token precedes the output: a decoder start token,
    or a prompt of one token.
    """
    forced_eos_token_ids: tuple[int, ...] = ()
    """Ids of end tokens. If an output reaches its maximum length, one of them is generated as its last token."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """Pair (start, factor) that limits long outputs: from `start` new tokens on, the score of the EOS token grows
    exponentially, by `factor` per token.
    """
    renormalize_logits: bool = False
    """Whether beam search normalizes scores to log-probabilities again after the logits processors have changed them.
    """
    timestamps: TimestampRules | None = None
    """Rules for generating the timestamp tokens of a speech recognizer. If None, no rules apply."""

    def __post_init__(self):
        fields.check(self)
        least = {"max_new_tokens": 1, "max_length": 1, "top_k": 1, "num_beams": 1, "temperature": 0, "seed": 0}
        least |= dict.fromkeys(
            ("min_new_tokens", "min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0
        )
        for field, value in least.items():
            fields.at_least(f"decoding.{field}", getattr(self, field), value)
        fields.within("decoding.min_p", self.min_p, 0, 1)
        for field in ("epsilon_cutoff", "eta_cutoff"):
            fields.within(f"decoding.{field}", getattr(self, field), 0, 1, below=True)
        for field in ("top_p", "typical_p"):
            if not 0 < getattr(self, field) <= 1:
                raise InputError(f"decoding.{field}={getattr(self, field)}: expected above 0, at most 1")
        for field in ("repetition_penalty", "encoder_repetition_penalty"):
            if not getattr(self, field) > 0:
                raise InputError(f"decoding.{field}={getattr(self, field)}: expected above 0")
        if self.max_new_tokens is None and self.max_length is None:
            raise InputError(
                "decoding.max_new_tokens=None: expected a number of tokens, or a value for decoding.max_length"
            )
        if self.num_beams > 1 and self.temperature:
            raise InputError(
                f"decoding.num_beams={self.num_beams}: beam search does not sample; expected decoding.temperature=0, "
                f"not {self.temperature}"
            )
        self._check_tokens()

    def _check_tokens(self) -> None:
        for field, ids in self.token_ids.items():
            if any(token < 0 for token in ids):
                raise InputError(f"decoding.{field}={getattr(self, field)}: expected ids of tokens, 0 or above")
        if self.eos_token_ids == ():
            raise InputError("decoding.eos_token_ids=(): expected one id or more, or None")
        if self.forced_eos_token_ids and set(self.forced_eos_token_ids) <= set(self.suppress_tokens):
            raise InputError(
                f"decoding.forced_eos_token_ids={self.forced_eos_token_ids}: decoding.suppress_tokens bans all; "
                "expected at least one allowed token"
            )
        if not all(self.bad_words_ids):
            raise InputError(f"decoding.bad_words_ids={self.bad_words_ids}: expected one id or more in each")

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """Maps the names of the fields that contain token ids to these ids."""
        return {
            "eos_token_ids": self.eos_token_ids or (),
            "bad_words_ids": tuple(token for word in self.bad_words_ids for token in word),
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
            "forced_bos_token_id": () if self.forced_bos_token_id is None else (self.forced_bos_token_id,),
            "forced_eos_token_ids": self.forced_eos_token_ids,
        }
