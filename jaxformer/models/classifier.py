"""Text classifier: a pretrained encoder or decoder with a linear head (Devlin et al. 2019, §4).

It predicts classes of texts or of tokens.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.mlp import HeadLayer
from jaxformer.layers.pooling import Pooling, pool, segments_of
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import InputSpec, Model, ModelOutput, TokenInput
from jaxformer.models.flops import linear_flops

WITHOUT_POOLER = "expected first, mean, max, last, first_and_mean or none"


@flax.struct.dataclass
class ClassifierOutput(ModelOutput):
    """Output of a text classifier."""

    logits: jax.Array | None = None
    """Logits, float32 [batch, examples, labels]. With pooling `none`, [batch, length, labels] for each token."""
    vectors: jax.Array | None = None
    """Input of the classification head, [batch, examples, embed] or, per token, [batch, length, embed]."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors for downstream use: the input of the classification head."""
        return self.vectors


class Classifier(Model):
    """Text classification model: a backbone with a linear head.

    The parameters of the backbone are in `backbone`, and those of the head in `head` and, if there is a `transform`, in
    `transform`.
    """

    is_text_classifier: ClassVar[bool] = True

    backbone: Model
    """Pretrained model with an input `tokens` and an output `hidden`, such as a `Bert` or a `Gpt`."""
    labels: tuple[str, ...]
    """Class names in the order of their ids. For regression, the single name of the target."""
    pooling: Pooling = "pooler"
    """How the token vectors of an example are reduced to one vector. In a decoder, only the `last` token depends on the
    whole text. `none` classifies each token."""
    dropout: float = 0.1
    """Dropout rate of the input of the head."""
    bias: bool = True
    """Whether the head has a bias."""
    transform: HeadLayer | None = None
    """Layer between the pooled vectors and the head. If None, the head reads the pooled vectors."""

    def __post_init__(self):
        super().__post_init__()
        backbone, kind = self.backbone, type(self.backbone).__name__
        if not isinstance(backbone, Model) or backbone.is_encoder_decoder or "tokens" not in backbone.inputs():
            raise InputError(
                f"model.backbone={kind}: expected a Bert or a Gpt, or another encoder or decoder of text; "
                "an encoder-decoder is not a classifier"
            )
        if self.pooling == "pooler" and not backbone.has_pooler:
            raise InputError(f"model.pooling=pooler: the backbone has none; {WITHOUT_POOLER}")
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError(f"model.labels={self.labels}: expected at least one name, without duplicates")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout={self.dropout}: expected 0 or more, below 1")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specifications of the input arrays: `cls_positions`, and those inputs of the backbone that are
        not only for pretraining (as `masked_positions` is).
        """
        names = ("tokens", "segments", "position_ids", "token_types", "cls_positions")
        own = {
            "cls_positions": InputSpec(
                "bc", "position of the first token of each example", optional=True, exported=False
            )
        }
        specs = own | self.backbone.inputs()
        return {name: specs[name] for name in names if name in specs}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of the backbone."""
        return {f"backbone/{path}": stack for path, stack in self.backbone.stacks().items()}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and maximum length of each input with token ids, the same as for the backbone."""
        return self.backbone.token_inputs()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: numbers of rows `b`, of tokens per row `t`, and of examples that are packed into a row `c` (default 1).
        """
        examples = sizes.get("c", 1)
        inner = {**sizes, "m": 0} if self.pooling == "pooler" else dict(sizes)
        vectors = sizes["t"] if self.pooling == "none" else examples
        width = list(self.stacks().values())[-1].width * (2 if self.pooling == "first_and_mean" else 1)
        head = linear_flops(vectors, width, len(self.labels))
        head += 0.0 if self.transform is None else linear_flops(vectors, width, width)
        return self.backbone.flops(inner) + sizes["b"] * head

    def pretrained(self) -> tuple[str, Model]:
        """Returns the prefix of the backbone's parameter paths, and the backbone."""
        return "backbone/", self.backbone

    @property
    def warm_start_names(self) -> Mapping[str, str]:
        """Names of pretrained layers from which a warm start may initialize other layers: it may initialize `transform`
        from the layer `masked_lm` of a pretrained model.
        """
        return {"transform": "masked_lm"}

    def comparable(self) -> Self:
        """Returns a copy for comparing two models, in which dropout is 0, so that it does not count as a difference."""
        return dataclasses.replace(self, backbone=self.backbone.comparable(), dropout=0.0)

    @property
    def interop(self) -> str:
        """Name of the Python module with the converters to and from the Hugging Face format, the same as for the
        backbone.
        """
        return self.backbone.interop

    @property
    def vocab(self) -> int:
        """Vocabulary size of the backbone."""
        return self.backbone.token_inputs()["tokens"].vocab

    @property
    def max_length(self) -> int:
        """Maximum input length of the backbone in tokens."""
        return self.backbone.token_inputs()["tokens"].max_length

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        cls_positions: jax.Array | None = None,
        train: bool = False,
    ) -> ClassifierOutput:
        """Classifies each example of each row, or each token.

        Args:
          tokens: token ids, integers [batch, length].
          segments: integers [batch, length]. The examples of a row have the segments 1, 2, ..., and 0 is padding.
            Defaults to one example.
          position_ids: positions, integers [batch, length]. Defaults to 0, 1, 2, ...
          token_types: token types for a backbone with several types, integers [batch, length]: 0 in sentence A, 1 in B.
            Defaults to 0.
          cls_positions: position of the first token of each example, integers [batch, examples]. Defaults to 0.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        segments = jnp.ones_like(tokens) if segments is None else segments
        cls_positions = jnp.zeros_like(tokens[:, :1]) if cls_positions is None else cls_positions
        inputs = {
            "tokens": tokens,
            "segments": segments,
            "position_ids": position_ids,
            "token_types": token_types,
            "cls_positions": cls_positions,
        }
        if self.pooling == "pooler":  # No predictions are needed, so the last block computes only the first tokens.
            inputs["masked_positions"] = tokens[:, :0]
        # RoBERTa has only one token type, because it separates two texts by special tokens.
        known = self.backbone.inputs()
        output = self.backbone(**{name: array for name, array in inputs.items() if name in known}, train=train)
        if self.pooling == "pooler":
            vectors = output.pooled
        elif self.pooling == "none":
            vectors = output.hidden
        else:
            vectors = pool(output.hidden, self.pooling, segments_of(segments, cls_positions.shape[1]))
        if self.transform is not None:
            vectors = self.transform(vectors, self.backbone.compute_dtype)
        vectors = Dropout(self.dropout)(vectors, train)
        shape = (vectors.shape[-1], len(self.labels))
        head = Linear("bmd,dc->bmc", shape, self.bias, self.backbone.compute_dtype, name="head")
        return ClassifierOutput(logits=head(vectors).astype(jnp.float32), vectors=vectors, means=output.means)
