"""Base class of models, which declares their inputs, stacks of Transformer blocks, computation and outputs.

Code outside a model family uses only the methods of this class, and never checks for a concrete class. So
initialization, tokenizer checks, warm start, exports, parity tests and decoding work for every `Model`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import flax.linen as nn
import flax.struct
import jax

from jaxformer.errors import InputError
from jaxformer.layers.cache import Cache
from jaxformer.layers.linear import DType, LMHead, decoded
from jaxformer.layers.transformer import Transformer
from jaxformer.metrics.means import Mean


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """Specification of an input array of a model: its axes, data type and meaning."""

    axes: str
    """Axes of the array, one letter per axis, such as "bt" for [batch, tokens]. Axes with the same letter have the same
    length in a call. `b` is the batch axis.
    """
    meaning: str
    """One-line description of the array, for the documentation of exported programs."""
    dtype: str = "int32"
    """Name of the array's NumPy data type."""
    optional: bool = False
    """Whether the array may be left out, because the model has a default for it."""
    exported: bool = True
    """Whether exported programs take the array as an argument. False for arrays that are mainly needed in training,
    such as the positions of masked tokens.
    """


@dataclasses.dataclass(frozen=True)
class TokenInput:
    """Limits of a model input that contains token ids."""

    vocab: int
    """Vocabulary size. Token ids must be below it."""
    max_length: int
    """Maximum number of tokens per row."""


POSITION_IDS = InputSpec("bt", "positions, from 0 in each example", optional=True, exported=False)
SEGMENTS = InputSpec("bt", "1 for tokens, 0 for padding", optional=True)
TOKENS = InputSpec("bt", "token ids")
PIXEL_INPUTS = ("images", "clips")
"""Names of model inputs that contain pixels: images, and video clips."""


@flax.struct.dataclass
class ModelOutput:
    """Base class of model outputs. A field is None if the model does not compute it, or if it was not requested.

    A model family adds its own fields. The output of a model with a head also has `logits`, as a field or a property.
    """

    hidden: jax.Array | None = None
    """Output vectors of the last stack of Transformer blocks, [batch, length, embed]."""
    pooled: jax.Array | None = None
    """One vector per example, [batch, examples, embed] for text, whose batch rows may contain several examples, or
    [batch, embed] for images.
    """
    attention: jax.Array | None = None
    """Self-attention weights of all layers, float32 [layers, batch, heads, queries, keys]. None unless requested."""
    means: dict[str, Mean] = flax.struct.field(default_factory=dict)
    """Auxiliary losses and metrics of the Transformer blocks, such as the load of experts, as weighted means keyed by
    name. Training adds these losses to its loss.
    """

    exported: ClassVar[tuple[str, ...]] = ("hidden", "logits", "pooled")
    """Names of the attributes that an exported program returns. Attributes that are None are left out."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks, one per token: [batch, length, embed]."""
        return self.hidden


@flax.struct.dataclass
class LMOutput(ModelOutput):
    """Output of a language model: hidden vectors, and an output layer to compute logits from them."""

    lm_head: LMHead | None = None
    """Output layer that maps `hidden` to logits."""
    cache: Cache | None = None
    """Keys and values of all tokens so far, including the new ones. None if the model was called without a cache."""

    @property
    def logits(self) -> jax.Array | None:
        """Next-token logits, float32 [batch, length, vocab]. Computed on access, so that a loss can avoid storing all
        of them.
        """
        return decoded(self.lm_head, self.hidden, "btv")


@flax.struct.dataclass
class Memory:
    """Encoder output that a decoder attends to."""

    hidden: jax.Array
    """Encoder output vectors, [batch, input_length, embed]."""
    segments: jax.Array
    """Mask of the encoder inputs, integers [batch, input_length]: 1 for tokens, 0 for padding."""


class Model(nn.Module):
    """Base class of models: a frozen dataclass of hyperparameters whose call returns a `ModelOutput`.

    A model family implements `inputs`, `stacks`, `flops` and, for text, `token_inputs`. Stacks of Transformer blocks
    are fields of the model. The name of the field is also the path of the stack's parameters.

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
    """Whether the model can generate text: `decode` predicts next tokens one by one, with a cache made by `new_cache`.
    """
    is_encoder_decoder: ClassVar[bool] = False
    """Whether the model has an encoder for the input `inputs`, and a decoder for the input `tokens` that attends to the
    encoder output.
    """
    is_text_classifier: ClassVar[bool] = False
    """Whether the model classifies text: its logits have one entry per label, for each text or for each token (see
    `Classifier.pooling`).
    """
    is_speller: ClassVar[bool] = False
    """Whether the model predicts a character or a blank for each frame of a sound (CTC)."""

    is_vocoder: ClassVar[bool] = False
    """Whether the model converts log-mel spectrograms to sounds, so that models which predict spectrograms can use it.
    """

    if TYPE_CHECKING:
        # Linen's own declaration also returns the collections that a call changes, which no model has.
        def apply(
            self,
            variables: Mapping[str, Any],
            *args: Any,
            **kwargs: Any,
        ) -> Any:
            """Computes the model's output. Same arguments as `flax.linen.Module.apply`."""

    # `inputs`, `stacks` and `flops` are not abstract methods, because `help` shows no fields for an abstract class.

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the name of each input argument to the specification of its array: axes, data type
        and meaning.
        """
        raise NotImplementedError

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of Transformer blocks in the order in which they run, keyed by the paths of their
        parameters.
        """
        raise NotImplementedError

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the name of each input argument with token ids to its vocabulary size and maximum
        length. Empty for a model without text input.
        """
        return {}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the number of floating-point operations of the matrix products in a forward pass.

        Args:
          sizes: maps the letter of each input axis to its length, such as {"b": 32, "t": 128}. Axes of optional inputs
            may be missing. Axes with a fixed length (`fixed_sizes`) are not included.
        """
        raise NotImplementedError

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the lengths of input axes that are the same in every call, such as the height of images, keyed by the
        letters of the axes (`InputSpec.axes`).
        """
        return {}

    def least_sizes(self) -> dict[str, int]:
        """Returns the minimum lengths of input axes, such as the one of waveforms, keyed by the letters of the axes."""
        return {}

    @property
    def pixel_input(self) -> str | None:
        """Name of the model's input that contains pixels: `images`, or `clips` for videos. None if there is no such
        input.
        """
        return next((name for name in PIXEL_INPUTS if name in self.inputs()), None)

    @property
    def text_limits(self) -> TokenInput | None:
        """Vocabulary size and maximum length that all text inputs of the model support: the smallest ones. None for a
        model without text input.
        """
        limits = self.token_inputs().values()
        if not limits:
            return None
        return TokenInput(min(limit.vocab for limit in limits), min(limit.max_length for limit in limits))

    @property
    def output_vocab(self) -> int | None:
        """Vocabulary size of the text that a model without text input predicts, such as the characters of a recognizer
        of speech with CTC. None for all other models.
        """
        return None

    def require_text_limits(self) -> TokenInput:
        """Returns `text_limits`. Raises InputError if the model has no text input."""
        limits = self.text_limits
        if limits is None:
            raise InputError(f"model={type(self).__name__}: reads no text; expected a model that does")
        return limits

    def encode_prompt(self, **inputs: jax.Array) -> Memory | None:
        """Encodes those inputs of a prompt that are for the encoder, such as a text to translate, audio or an image.
        Returns None for a model without an encoder, which takes no such inputs.

        Decoding calls it once per prompt. The names of the inputs depend on the model.
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
        """Predicts the next token after each of `tokens`, which follow the tokens in the cache.

        By default, calls the model with `cache`. Encoder–decoders override this method.

        Args:
          tokens: token ids, integers [batch, new tokens]. The first call has all tokens of the prompt, and later calls
            usually have one token.
          position_ids: positions of `tokens`, integers of the same shape.
          cache: keys and values of the preceding tokens, in a cache made by `new_cache`. `cache.segments` marks the
            slots that contain tokens.
          memory: encoder output vectors, the field `hidden` of the result of `encode_prompt`, [batch, input_length,
            embed]. Only needed in the first call.
          prefix: True for tokens that attend to each other in both directions, boolean, of the same shape as `tokens`.
            If None, attention is causal.
        """
        if memory is not None:
            raise ValueError(f"{type(self).__name__} has no cross-attention: it cannot read a memory")
        if prefix is None:
            return self(tokens, position_ids=position_ids, cache=cache)
        return self(tokens, position_ids=position_ids, prefix=prefix, cache=cache)

    def new_cache(self, rows: int, slots: int) -> Cache:
        """Returns an empty cache of keys and values for the stack of blocks that generates tokens.

        Args:
          rows: number of batch rows.
          slots: maximum number of tokens per row.
        """
        return list(self.stacks().values())[-1].new_cache(rows, slots)

    @property
    def mean_names(self) -> tuple[str, ...]:
        """Names of the auxiliary losses and metrics that the Transformer blocks return besides their output, such as a
        load-balancing loss. Each MLP class lists its own in its attribute `mean_names`.
        """
        mlps = [kind.mlp for stack in self.stacks().values() for kind in stack.kinds]
        return tuple(dict.fromkeys(name for mlp in mlps for name in getattr(mlp, "mean_names", ())))

    @property
    def has_pooler(self) -> bool:
        """Whether the output `pooled` is computed by a trained layer (a pooler, as in BERT)."""
        return False

    @property
    def interop(self) -> str:
        """Name of the Python module with the converters to and from the Hugging Face format, for a model class that is
        defined outside jaxformer. Empty if the converters are in jaxformer itself.

        The module is imported when needed. Its variable `FAMILIES` lists the converters.
        """
        return ""

    @property
    def compute_dtype(self) -> DType:
        """Data type that the heads compute in: the one of the last stack of blocks."""
        return list(self.stacks().values())[-1].dtype

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the top-level modules whose parameters belong to the backbone, such as `embeddings`. All other
        parameters belong to heads.

        A warm start fails if the pretrained model lacks backbone parameters of this model. It may initialize heads
        randomly.
        """
        return ("embeddings", next(iter(self.stacks())).partition("/")[0])

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the model's fields that affect only the heads. In a warm start, the pretrained model may have other
        values in these fields.
        """
        return ()

    @property
    def position_tables(self) -> Mapping[str, str]:
        """Maps names of fields that are lengths, such as `max_length`, to the path of the parameter with a row for each
        position. A warm start from a model with greater lengths takes the first rows.
        """
        return {}

    @property
    def warm_start_names(self) -> Mapping[str, str]:
        """Layers that a warm start may initialize from a pretrained layer with another name.

        Maps the first component of a parameter path in this model to the first component of a path in the pretrained
        model, such as {"transform": "masked_lm"}. The latter is used only if the pretrained model has no parameter with
        the same path.
        """
        return {}

    def pretrained(self) -> tuple[str, "Model"]:
        """Returns the part of this model that is usually pretrained, such as the backbone of a classifier: the prefix
        of its parameter paths, such as `backbone/`, and its model. By default, an empty prefix and this model.
        """
        return "", self

    def part(self, name: str) -> tuple[str, "Model"]:
        """Returns the part of this model that takes the input `name`, such as the text encoder of a CLIP model for
        `tokens`: the prefix of its parameter paths, and its model. If there are no parts, an empty prefix and this
        model.
        """
        del name
        return self.pretrained()

    @nn.nowrap
    def map_part(self, name: str, change: Callable[["Model"], "Model"]) -> "Model":
        """Returns a copy of this model in which the part that takes the input `name` is replaced by `change(part)`.
        Parts of parts are followed to the innermost one.
        """
        prefix, inner = self.part(name)
        if not prefix:
            return change(self)
        return dataclasses.replace(self, **{prefix.strip("/"): inner.map_part(name, change)})

    def comparable(self) -> Self:
        """Returns a copy for comparing two models: fields that affect neither the parameters nor the computation have
        their defaults, so that models which differ only in these fields count as equal.
        """
        return self

    @nn.nowrap
    def map_stacks(self, change: Callable[[Transformer], Transformer]) -> Self:
        """Returns a copy of this model in which each stack of Transformer blocks is replaced by `change(stack)`."""
        # Without `nowrap`, Linen would make the modules that `change` returns submodules of this one.
        changes: dict[str, Any] = {}
        for path, stack in self.stacks().items():
            field, _, inner = path.partition("/")
            changes[field] = getattr(self, field).map_stacks(change) if inner else change(stack)
        return dataclasses.replace(self, **changes)

    @nn.nowrap
    def replace_stacks(self, **changes: Any) -> Self:
        """Returns a copy of this model in which fields of all stacks of Transformer blocks have new values, such as
        `dtype="float32"`.
        """
        return self.map_stacks(lambda stack: dataclasses.replace(stack, **changes))

    @nn.nowrap
    def abstract_inputs(self, length: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and data types of the required inputs for one batch row, keyed by input name.

        Axes without a fixed size have the length `length`.
        """
        sizes = {"b": 1} | self.fixed_sizes()
        return {
            name: jax.ShapeDtypeStruct([sizes.get(letter, length) for letter in spec.axes], spec.dtype)
            for name, spec in self.inputs().items()
            if not spec.optional
        }
