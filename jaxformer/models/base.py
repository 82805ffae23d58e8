"""The contract of models: what a model takes, what it is made of, and what it computes.

Code outside of a family reads this contract and never asks for a class: initialisation, checks of the tokenizer, warm
start, exports, parity and decoding work for every `Model`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.struct
import jax

from jaxformer.layers.cache import Cache
from jaxformer.layers.linear import DType, LMHead
from jaxformer.layers.transformer import Transformer
from jaxformer.metrics.means import Mean
from jaxformer.parallel import sharding


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """An array that a model is called with."""

    axes: str
    """A letter for each axis; axes of the same letter have the same length in a call. `b` are rows."""
    meaning: str
    """One line for the documentation of exported programs."""
    dtype: str = "int32"
    optional: bool = False
    """Whether the model has a default for it."""
    exported: bool = True
    """Whether exported programs take it. They do not take what only training needs, such as the layout of packed
    rows."""


@dataclasses.dataclass(frozen=True)
class TokenInput:
    """The limits of an input of token ids."""

    vocab: int
    """Size of the vocabulary."""
    max_length: int
    """The longest row, in tokens."""


POSITION_IDS = InputSpec("bt", "positions, from 0 in each example", optional=True, exported=False)
SEGMENTS = InputSpec("bt", "1 where there is a token, 0 for padding", optional=True)
TOKENS = InputSpec("bt", "ids of the tokens")


@flax.struct.dataclass
class ModelOutput:
    """The output of a model; None for what it does not have, or was not requested.

    A family adds fields of its own. An output of a model with a head has `logits` too, as a field or a property.
    """

    hidden: jax.Array | None = None
    """The output of the last stack, [b, t, d]."""
    pooled: jax.Array | None = None
    """A vector for each example, [b, c, d], or for each image, [b, d]."""
    attention: jax.Array | None = None
    """Weights of self-attention, float32 [l, b, h, t, s]."""
    means: dict[str, Mean] = flax.struct.field(default_factory=dict)
    """Auxiliary means of the stacks, such as the load of experts; training adds them to the loss."""

    exported: ClassVar[tuple[str, ...]] = ("hidden", "logits", "pooled")
    """Attributes that an exported program returns, where they are not None."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors for further use, [b, t, d]: those of each token."""
        return self.hidden


@flax.struct.dataclass
class LMOutput(ModelOutput):
    """The output of a language model."""

    lm_head: LMHead | None = None
    """The map from `hidden` to logits."""
    cache: Cache | None = None
    """The cache with the new tokens, if the model was called with one."""

    @property
    def logits(self) -> jax.Array | None:
        """Logits of each next token, float32 [b, t, v]; computed when read, so that a loss can do without them."""
        return None if self.lm_head is None else sharding.constrain(self.lm_head.logits(self.hidden), "btv")


@flax.struct.dataclass
class Memory:
    """The output of an encoder for a prompt."""

    hidden: jax.Array
    """[b, s, d]."""
    segments: jax.Array
    """Integers [b, s]: 1, and 0 where there is padding."""


class Model(nn.Module):
    """A model: a frozen dataclass of hyperparameters whose call returns a `ModelOutput`.

    A family implements `inputs`, `stacks`, `flops` and, for text, `token_inputs`. Stacks are fields, and the name of a
    field is the path of the stack's parameters.

    Example:

        class Tagger(Model):
            encoder: Transformer
            vocab: int
            max_length: int = 128

            def inputs(self):
                return {"tokens": TOKENS, "segments": SEGMENTS}

            def stacks(self):
                return {"encoder": self.encoder}

            def token_inputs(self):
                return {"tokens": TokenInput(self.vocab, self.max_length)}

            def flops(self, sizes):
                return sizes["b"] * stack_flops(self.encoder, sizes["t"])
    """

    is_generative: ClassVar[bool] = False
    """Whether it predicts next tokens one by one: it has `new_cache` and takes a `cache`."""
    is_encoder_decoder: ClassVar[bool] = False
    """Whether it has an encoder of `inputs` (`encode`), and a decoder of `tokens` (`decode`) that attends to it."""
    is_text_classifier: ClassVar[bool] = False
    """Whether its logits are those of `labels`, for examples or tokens of text as `pooling` says."""

    # `inputs`, `stacks` and `flops` are not abstract: `help` of an abstract class shows no fields.

    def inputs(self) -> dict[str, InputSpec]:
        """The arrays that a call takes, by the names of its arguments."""
        raise NotImplementedError

    def stacks(self) -> dict[str, Transformer]:
        """The stacks of blocks, in the order in which they run, by the path of their parameters."""
        raise NotImplementedError

    def token_inputs(self) -> dict[str, TokenInput]:
        """The limits of each input of token ids, by its name; none for a model without text."""
        return {}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Floating-point operations of the matrix products of a forward pass.

        Args:
          sizes: the length of each axis by its letter, such as {"b": 32, "t": 128}. Axes of optional inputs may be
            missing; axes that the model fixes (`fixed_sizes`) are.
        """
        raise NotImplementedError

    def fixed_sizes(self) -> dict[str, int]:
        """Lengths of the axes that are the same in every call, by letter: height, width and channels of images."""
        return {}

    @property
    def text_limits(self) -> TokenInput | None:
        """The smallest limits of all inputs of token ids; None for a model without text."""
        limits = self.token_inputs().values()
        if not limits:
            return None
        return TokenInput(min(limit.vocab for limit in limits), min(limit.max_length for limit in limits))

    def encode_prompt(self, **inputs: jax.Array) -> Memory | None:
        """Encodes what a prompt has besides tokens: text to translate, sound, a picture.

        Only models with an encoder take inputs; each names its own. Decoding calls it once.
        """
        if inputs:
            raise ValueError(f"{type(self).__name__} has no encoder: it cannot read {', '.join(inputs)}")
        return None

    def decode(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        cache: Cache,
        memory: jax.Array | None = None,
        prefix: jax.Array | None = None,
    ) -> LMOutput:
        """Predicts the tokens after `tokens`, which follow those in the cache.

        By default it is a call with a `cache`; encoder–decoders have a method of their own.

        Args:
          tokens: integers [b, k]; several at once are those of a prompt, or of a speculative step.
          position_ids: integers [b, k].
          cache: of the tokens before these, as `new_cache` made it; its segments say where there are tokens.
          memory: what `encode_prompt` returned, [b, s, d]; needed in the first call only.
          prefix: boolean [b, k]: tokens that see each other both ways; None: none do.
        """
        if memory is not None:
            raise ValueError(f"{type(self).__name__} has no cross-attention: it cannot read a memory")
        if prefix is None:
            return self(tokens, position_ids=position_ids, cache=cache)
        return self(tokens, position_ids=position_ids, prefix=prefix, cache=cache)

    def new_cache(self, rows: int, slots: int) -> Cache:
        """An empty cache of the stack that generates."""
        return list(self.stacks().values())[-1].new_cache(rows, slots)

    @property
    def has_pooler(self) -> bool:
        """Whether `pooled` comes from a trained layer."""
        return False

    @property
    def interop(self) -> str:
        """Name of the module whose `FAMILIES` say how the model is exchanged with Hugging Face.

        Empty where the library's own families do. The module is imported when it is needed.
        """
        return ""

    @property
    def compute_dtype(self) -> DType:
        """The type that heads compute in: that of the last stack."""
        return list(self.stacks().values())[-1].dtype

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """First names of the parameters that a warm start must find in both models; the others are heads."""
        return ("embeddings", next(iter(self.stacks())).partition("/")[0])

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Fields that do not change `backbone_parts`, in which a model may differ from the one it starts from."""
        return ()

    @property
    def warm_start_names(self) -> Mapping[str, str]:
        """Where else a warm start looks for a head's parameters, by the first name of their paths.

        The values are first names in a pretrained model, which count where it has no parameter of the path itself.
        """
        return {}

    def pretrained(self) -> tuple[str, "Model"]:
        """The pretrained model inside this one (or itself), and the prefix of its parameters' paths."""
        return "", self

    def part(self, name: str) -> tuple[str, "Model"]:
        """The model inside this one (or itself) that takes the input of this name, and the prefix of its paths."""
        del name
        return self.pretrained()

    @nn.nowrap
    def map_part(self, name: str, change: Callable[["Model"], "Model"]) -> "Model":
        """The model with the innermost model that takes the input of this name replaced by `change(it)`."""
        prefix, inner = self.part(name)
        if not prefix:
            return change(self)
        return dataclasses.replace(self, **{prefix.strip("/"): inner.map_part(name, change)})

    def comparable(self) -> Self:
        """The model with neutral values for fields that change neither a parameter nor what is computed from it."""
        return self

    @nn.nowrap
    def map_stacks(self, change: Callable[[Transformer], Transformer]) -> Self:
        """The model with each of its stacks replaced by `change(stack)`."""
        # Not wrapped by Linen, or modules that `change` makes would become submodules of this one.
        changes: dict[str, Any] = {}
        for path, stack in self.stacks().items():
            field, _, inner = path.partition("/")
            changes[field] = getattr(self, field).map_stacks(change) if inner else change(stack)
        return dataclasses.replace(self, **changes)

    @nn.nowrap
    def replace_stacks(self, **changes: Any) -> Self:
        """The model with these fields in each of its stacks, such as `dtype="float32"`."""
        return self.map_stacks(lambda stack: dataclasses.replace(stack, **changes))

    @nn.nowrap
    def abstract_inputs(self, length: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and types of the inputs without default, for one row; axes that are free have this length."""
        sizes = {"b": 1} | self.fixed_sizes()
        return {
            name: jax.ShapeDtypeStruct([sizes.get(letter, length) for letter in spec.axes], spec.dtype)
            for name, spec in self.inputs().items()
            if not spec.optional
        }
