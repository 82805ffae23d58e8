"""Text classifier: a pretrained encoder or decoder with a linear head (Devlin et al. 2019, §4).

It predicts the classes of texts or of single tokens.
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
    """Class logits, float32 [batch, examples, labels]. With pooling `none`, they are per token, [batch, length,
    labels].
    """
    vectors: jax.Array | None = None
    """Input of the classification head, [batch, examples, embed]. With pooling `none`, it is per token, [batch, length,
    embed].
    """

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks: the input of the classification head."""
        return self.vectors


class Classifier(Model):
    """Text classification model: a backbone with a linear head.

    Its parameters are in the modules `backbone`, `head` and, if there is a `transform`, `transform`.
    """

    is_text_classifier: ClassVar[bool] = True

    backbone: Model
    """Pretrained model with an input `tokens` and an output `hidden`, such as a `Bert` or a `Gpt`."""
    labels: tuple[str, ...]
    """Class names in the order of their ids. For regression, only the name of the target."""
    pooling: Pooling = "pooler"
    """How the token vectors of an example are reduced to one vector. With a decoder, use `last`, because only the last
    token depends on the whole text. `none` classifies each token.
    """
    dropout: float = 0.1
    """Dropout rate of the input of the classification head."""
    bias: bool = True
    """Whether the linear layer of the classification head has a bias."""
    transform: HeadLayer | None = None
    """Layer between the pooled vectors and the classification head. If None, the pooled vectors are the input of the
    head.
    """

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
        """Returns a dict that maps input names to the specifications of the arrays: `cls_positions`, and the inputs of
        the backbone except those that are only for pretraining, such as `masked_positions`.
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
        """Returns the stacks of Transformer blocks in the backbone, keyed by the paths of their parameters."""
        return {f"backbone/{path}": stack for path, stack in self.backbone.stacks().items()}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the name of each input with token ids to its vocabulary size and maximum length, as
        for the backbone.
        """
        return self.backbone.token_inputs()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: number of rows `b`, of tokens per row `t`, and of examples that are packed into a row `c` (default 1),
            keyed by these letters.
        """
        examples = sizes.get("c", 1)
        inner = {**sizes, "m": 0} if self.pooling == "pooler" else dict(sizes)
        vectors = sizes["t"] if self.pooling == "none" else examples
        width = list(self.stacks().values())[-1].width * (2 if self.pooling == "first_and_mean" else 1)
        head = linear_flops(vectors, width, len(self.labels))
        head += 0.0 if self.transform is None else linear_flops(vectors, width, width)
        return self.backbone.flops(inner) + sizes["b"] * head

    def pretrained(self) -> tuple[str, Model]:
        """Returns the part of this model that is usually pretrained: the prefix of its parameter paths, `backbone/`,
        and the backbone.
        """
        return "backbone/", self.backbone

    @property
    def warm_start_names(self) -> Mapping[str, str]:
        """Layers that a warm start may initialize from a pretrained layer with another name: `transform` from the layer
        `masked_lm` of the pretrained model.
        """
        return {"transform": "masked_lm"}

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its dropout is 0, so that models which differ only in dropout count
        as equal.
        """
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
          segments: integers [batch, length]. The tokens of the first example in a row have the number 1, those of the
            second 2, and so on; padding has 0. Defaults to one example per row, without padding.
          position_ids: positions, integers [batch, length]. Defaults to 0, 1, 2, ...
          token_types: token types for a backbone with several types, integers [batch, length]: 0 in sentence A, 1 in B.
            Defaults to 0.
          cls_positions: index of the first token of each example, integers [batch, examples]. Defaults to one example
            per row, which starts at 0.
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
