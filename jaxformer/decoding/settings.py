"""Decoding settings: how a model chooses the next token."""

import dataclasses
from typing import Literal

from jaxformer import fields
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class TimestampRules:
    """Rules for timestamp tokens (Radford et al. 2022): an output starts with a timestamp, timestamps come in pairs
    around each segment of text and do not decrease, and a timestamp is generated if all timestamps together are more
    likely than any other token.
    """

    first: int
    """Id of the token for the time 0. The tokens of later times follow it. The preceding id, which stands for an output
    without timestamps, is never generated.
    """
    latest_start: int | None = 50
    """Maximum number of the first timestamp, counted from 0 at the time 0. If None, it is not limited."""

    def __post_init__(self):
        fields.at_least("decoding.timestamps.first", self.first, 1)
        fields.at_least("decoding.timestamps.latest_start", self.latest_start, 0)


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Decoding settings: greedy by default, sampling if `temperature` > 0, beam search if `num_beams` > 1.

    The settings are defined as in `generate` of the Hugging Face transformers library: equal settings give equal
    tokens. A setting with its default value adds nothing to the compiled program.
    """

    max_new_tokens: int | None = 64
    """Maximum number of new tokens. If None, `max_length` limits the output."""
    temperature: float = 0.0
    """Temperature that divides the logits before sampling: lower values are more conservative. 0 disables sampling."""
    top_k: int | None = None
    """Number of tokens with the highest probabilities to sample from. If None, all tokens."""
    top_p: float = 1.0
    """Nucleus sampling: samples from the smallest set of most likely tokens whose total probability reaches this value
    (Holtzman et al. 2020). 1 disables it.
    """
    min_p: float = 0.0
    """Minimum probability of a sampled token, as a fraction of the probability of the most likely token."""
    repetition_penalty: float = 1.0
    """Factor that makes tokens that occurred before less likely: it divides positive scores and multiplies negative
    ones (Keskar et al. 2019). 1 disables it.
    """
    num_beams: int = 1
    """Number of hypotheses kept at each step. 1 disables beam search."""
    length_penalty: float = 1.0
    """Beam search divides the log-probability of a hypothesis by its length to the power of this number. Values above 0
    favour longer hypotheses.
    """
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends: False when a better hypothesis is unlikely, True when `num_beams` hypotheses have ended,
    "never" when no better hypothesis is possible."""
    seed: int = 0
    """Random seed for sampling."""
    max_length: int | None = None
    """Maximum total length in tokens, used if `max_new_tokens` is None. Counts the prompt and the output of a decoder,
    or the start token and the output of an encoder–decoder."""
    min_new_tokens: int = 0
    """Minimum number of new tokens before an end token is allowed."""
    min_length: int = 0
    """Minimum total length in tokens, used if `min_new_tokens` is 0. Counts the same tokens as `max_length`."""
    eos_token_ids: tuple[int, ...] | None = None
    """Ids of the tokens that end an output. If None, the end token of the tokenizer."""
    typical_p: float = 1.0
    """Typical sampling: samples from the tokens whose surprisal is closest to the entropy and whose total probability
    reaches this value (Meister et al. 2022). 1 disables it.
    """
    epsilon_cutoff: float = 0.0
    """Minimum probability of a sampled token (Hewitt et al. 2022). 0 disables it."""
    eta_cutoff: float = 0.0
    """Minimum probability of a sampled token. It is lowered if the entropy of the distribution is high (Hewitt et al.
    2022). 0 disables it.
    """
    encoder_repetition_penalty: float = 1.0
    """Factor by which the scores of tokens that occur in the prompt are raised. 1 disables it."""
    no_repeat_ngram_size: int = 0
    """Length of n-grams that may occur only once in the output or, for a decoder, in the prompt and output together
    (Paulus et al. 2018). 0 disables it.
    """
    encoder_no_repeat_ngram_size: int = 0
    """Length of n-grams of the prompt that may not occur in the output. 0 disables it."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids that are never generated."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated as the first token."""
    forced_bos_token_id: int | None = None
    """Id of the token that is always generated first. Applies only if one token precedes the output: a decoder start
    token or a one-token prompt.
    """
    forced_eos_token_ids: tuple[int, ...] = ()
    """Ids of end tokens, one of which becomes the last token of an output that reaches its limit."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """Pair (start, factor): after `start` new tokens, the score of the end token grows exponentially by the factor per
    token."""
    renormalize_logits: bool = False
    """Whether beam search normalises scores to log-probabilities again after the other settings have changed them."""
    timestamps: TimestampRules | None = None
    """Rules for the timestamp tokens of speech recognition. If None, there are no such rules."""

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
        """Maps each field that contains token ids to these ids."""
        return {
            "eos_token_ids": self.eos_token_ids or (),
            "bad_words_ids": tuple(token for word in self.bad_words_ids for token in word),
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
            "forced_bos_token_id": () if self.forced_bos_token_id is None else (self.forced_bos_token_id,),
            "forced_eos_token_ids": self.forced_eos_token_ids,
        }
