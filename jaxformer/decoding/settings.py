"""How a model's next tokens are chosen."""

import dataclasses
from typing import Literal

from jaxformer import fields
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The likeliest token at each step, sampling (`temperature` above 0), or beam search (`num_beams` above 1).

    Definitions are those of transformers' `generate`; its settings of the same names give the same tokens. Each setting
    at its default is left out of the compiled program.
    """

    max_new_tokens: int | None = 64
    """New tokens, at most; None leaves it to `max_length`."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn: below 1 safer, above 1 wilder; 0 takes the likeliest."""
    top_k: int | None = None
    """Number of likeliest tokens to draw from; None: all."""
    top_p: float = 1.0
    """Draw among the fewest likeliest tokens that together have this probability (Holtzman et al. 2020)."""
    min_p: float = 0.0
    """Draw among tokens at least this times as likely as the likeliest."""
    repetition_penalty: float = 1.0
    """Penalty on the scores of tokens that occurred before (Keskar et al. 2019); 1: none."""
    num_beams: int = 1
    """Hypotheses kept at each step; 1: no beam search."""
    length_penalty: float = 1.0
    """Hypotheses compete by log-probability divided by length to this power: above 0 favours long ones."""
    early_stopping: bool | Literal["never"] = False
    """When a beam search ends: False when a better hypothesis is unlikely, True when `num_beams` have ended, "never"
    when none can be better."""
    seed: int = 0
    """Seed of the draws."""
    max_length: int | None = None
    """Tokens of a decoder's prompt and output together (of an encoder–decoder's start token and output), at most; used
    where `max_new_tokens` is None."""
    min_new_tokens: int = 0
    """New tokens before the end token may come."""
    min_length: int = 0
    """The same, counted as `max_length` counts; used where `min_new_tokens` is 0."""
    eos_token_ids: tuple[int, ...] | None = None
    """Ids of the tokens that end an output; None: the tokenizer's end token."""
    typical_p: float = 1.0
    """Draw among the tokens whose surprise is nearest to the entropy and that together have this probability (Meister
    et al. 2022)."""
    epsilon_cutoff: float = 0.0
    """Draw among tokens at least this likely (Hewitt et al. 2022)."""
    eta_cutoff: float = 0.0
    """Draw among tokens at least this likely, or less likely where the entropy is high (Hewitt et al. 2022)."""
    encoder_repetition_penalty: float = 1.0
    """Boost of the scores of the prompt's tokens; 1: none."""
    no_repeat_ngram_size: int = 0
    """Length of n-grams that do not occur twice, the prompt of a decoder included (Paulus et al. 2018); 0: any may."""
    encoder_no_repeat_ngram_size: int = 0
    """Length of the prompt's n-grams that do not occur in the output; 0: any may."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of token ids that are never generated."""
    suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated."""
    begin_suppress_tokens: tuple[int, ...] = ()
    """Ids of tokens that are never generated first."""
    forced_bos_token_id: int | None = None
    """Id of the token that comes first, after a start token or a prompt of one token."""
    forced_eos_token_ids: tuple[int, ...] = ()
    """Ids of end tokens: one of them is the last token of an output that reaches its limit."""
    exponential_decay_length_penalty: tuple[int, float] | None = None
    """(start, factor): after `start` new tokens, the end token's score grows by the factor with each token."""
    renormalize_logits: bool = False
    """Whether the scores of a beam search are log-probabilities again after the settings above have changed them."""

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
            raise InputError("decoding.max_new_tokens=None: expected a number of tokens, or decoding.max_length")
        if self.num_beams > 1 and self.temperature:
            raise InputError(
                f"decoding.num_beams={self.num_beams}: a beam search draws nothing; expected decoding.temperature=0, "
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
                f"decoding.forced_eos_token_ids={self.forced_eos_token_ids}: decoding.suppress_tokens has them all; "
                "expected one that may come"
            )
        if not all(self.bad_words_ids):
            raise InputError(f"decoding.bad_words_ids={self.bad_words_ids}: expected one id or more in each")

    @property
    def token_ids(self) -> dict[str, tuple[int, ...]]:
        """The ids of tokens that each field names, by field."""
        return {
            "eos_token_ids": self.eos_token_ids or (),
            "bad_words_ids": tuple(token for word in self.bad_words_ids for token in word),
            "suppress_tokens": self.suppress_tokens,
            "begin_suppress_tokens": self.begin_suppress_tokens,
            "forced_bos_token_id": () if self.forced_bos_token_id is None else (self.forced_bos_token_id,),
            "forced_eos_token_ids": self.forced_eos_token_ids,
        }
