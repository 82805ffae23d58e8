"""wav2vec 2.0 (Baevski et al. 2020) and HuBERT (Hsu et al. 2021): encoders of waveforms, which are pretrained on masked
spans of frames, and recognizers of speech with CTC (Graves et al. 2006).
"""

import dataclasses
from typing import ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.embeddings import vocabulary
from jaxformer.layers.linear import Linear
from jaxformer.layers.quantizer import ProductQuantizer
from jaxformer.layers.transformer import fresh
from jaxformer.losses.contrastive import unit
from jaxformer.models.base import InputSpec
from jaxformer.models.flops import linear_flops
from jaxformer.models.speech_encoder import MASKED, SpeechEncoder, SpeechOutput
from jaxformer.parallel import metadata


@flax.struct.dataclass
class CtcOutput(SpeechOutput):
    """Output of a recognizer of speech with CTC."""

    logits: jax.Array | None = None
    """Logits of the characters and the blank, float32 [batch, frames, vocab]."""

    exported: ClassVar[tuple[str, ...]] = ("hidden", "logits")


class Wav2Vec2Ctc(SpeechEncoder):
    """Recognizer of speech with CTC: predicts a character or the blank for each frame. The parameters of the encoder
    have the same paths as those of `Wav2Vec2` and `Hubert`.
    """

    is_speller: ClassVar[bool] = True

    vocab: int | None = 32
    """Vocabulary size, including the blank. It must be at least the number of tokens of the tokenizer. If None, a
    training run sets it to the tokenizer's number of tokens.
    """
    blank: int = 0
    """Id of the blank: that of the padding token of the tokenizer."""
    head_dropout: float = 0.0
    """Dropout rate of the input of the output layer."""

    def __post_init__(self):
        super().__post_init__()
        if self.blank < 0 or (self.vocab is not None and self.blank >= self.vocab):
            raise InputError(f"model.blank={self.blank}: expected an id below model.vocab={self.vocab}")
        if not 0 <= self.head_dropout < 1:
            raise InputError(f"model.head_dropout={self.head_dropout}: expected 0 or more, below 1")

    @property
    def output_vocab(self) -> int | None:
        """Vocabulary size of the text that the model predicts."""
        return vocabulary(self.vocab)

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields in which a pretrained model may differ in a warm start."""
        return (*super().head_fields, "vocab", "blank", "head_dropout")

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its dropout is 0 and the norm over time includes padding, so that
        models which differ only in these settings count as equal.
        """
        return dataclasses.replace(super().comparable(), head_dropout=0.0)

    def head_flops(self, frames: int) -> float:
        return linear_flops(frames, self.transformer.width, vocabulary(self.vocab))

    def setup(self):
        super().setup()
        shape = (self.transformer.width, vocabulary(self.vocab))
        self.lm_head = Linear("btd,dv->btv", shape, dtype=self.transformer.dtype)

    def __call__(
        self,
        samples: jax.Array,
        sample_mask: jax.Array | None = None,
        masked: jax.Array | None = None,
        train: bool = False,
    ) -> CtcOutput:
        """Predicts a character or the blank for each frame. For the arguments, see `encode`."""
        encoded = self.encode(samples, sample_mask, masked, train)
        logits = self.lm_head(self._dropout(encoded.hidden, self.head_dropout, train)).astype(jnp.float32)
        return CtcOutput(hidden=encoded.hidden, logits=logits, frames=encoded.frames, means=encoded.means)


@flax.struct.dataclass
class Wav2Vec2Output(SpeechOutput):
    """Output of wav2vec 2.0 in pretraining."""

    predicted: jax.Array | None = None
    """Projected output vectors of the Transformer, float32 [batch, frames, projected]."""
    quantized: jax.Array | None = None
    """Projected quantized frames, which are to be predicted, float32 [batch, frames, projected]."""
    codes: jax.Array | None = None
    """Index of the chosen entry of each codebook, int32 [batch, frames, codebooks]."""
    probabilities: jax.Array | None = None
    """Probability of each entry of each codebook, float32 [batch, frames, codebooks, entries]."""

    exported: ClassVar[tuple[str, ...]] = ("hidden", "predicted", "quantized")


class Wav2Vec2(SpeechEncoder):
    """wav2vec 2.0 in pretraining: predicts the quantized frames at masked positions. The default is the base model."""

    quantizer: ProductQuantizer = ProductQuantizer()
    """Quantizer of the frames that are to be predicted."""
    projected: int = 256
    """Size of the vectors that the loss compares."""
    quantizer_dropout: float = 0.0
    """Dropout rate of the input of the quantizer."""

    def __post_init__(self):
        if isinstance(self.quantizer, nn.Module) and self.quantizer.parent is None:
            object.__setattr__(self, "quantizer", fresh(self.quantizer))
        super().__post_init__()
        if not self.has_mask_embedding:
            raise InputError("model.has_mask_embedding=False: frames are masked in pretraining; expected True")
        if self.quantizer.width % self.quantizer.codebooks:
            raise InputError(
                f"model.quantizer.codebooks={self.quantizer.codebooks} does not divide the width {self.quantizer.width}"
            )

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: `samples`, `sample_mask` and
        `masked`.
        """
        return super().inputs() | {"masked": dataclasses.replace(MASKED, exported=True)}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields in which a pretrained model may differ in a warm start."""
        return (*super().head_fields, "quantizer", "projected", "quantizer_dropout")

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Settings that only affect training have their defaults."""
        quantizer = dataclasses.replace(self.quantizer, temperature=2.0)
        return dataclasses.replace(super().comparable(), quantizer=quantizer, quantizer_dropout=0.0)

    def head_flops(self, frames: int) -> float:
        books, entries, width = self.quantizer.codebooks, self.quantizer.entries, self.quantizer.width
        flops = linear_flops(frames, self.widths[-1], books * entries) + linear_flops(frames, entries, width)
        return flops + linear_flops(frames, self.transformer.width + width, self.projected)

    def setup(self):
        super().setup()
        width, dtype = self.transformer.width, self.transformer.dtype
        self.hidden_projection = Linear("bti,id->btd", (width, self.projected), dtype=dtype)
        self.code_projection = Linear("bti,id->btd", (self.quantizer.width, self.projected), dtype=dtype)

    def __call__(
        self,
        samples: jax.Array,
        sample_mask: jax.Array | None = None,
        masked: jax.Array | None = None,
        train: bool = False,
    ) -> Wav2Vec2Output:
        """Encodes waveforms with masked frames, and quantizes frames. For the arguments, see `encode`. Training also
        draws the entries of the quantizer at random.
        """
        encoded = self.encode(samples, sample_mask, masked, train)
        quantized = self.quantizer(self._dropout(encoded.features, self.quantizer_dropout, train), train)
        return Wav2Vec2Output(
            hidden=encoded.hidden,
            predicted=self.hidden_projection(encoded.hidden).astype(jnp.float32),
            quantized=self.code_projection(quantized.vectors).astype(jnp.float32),
            codes=quantized.codes,
            probabilities=quantized.probabilities,
            frames=encoded.frames,
            means=encoded.means,
        )


@flax.struct.dataclass
class HubertOutput(SpeechOutput):
    """Output of HuBERT in pretraining."""

    logits: jax.Array | None = None
    """Logits of the clusters of each frame, float32 [batch, frames, clusters]."""

    exported: ClassVar[tuple[str, ...]] = ("hidden", "logits")


class Hubert(SpeechEncoder):
    """HuBERT in pretraining: predicts the clusters of masked frames. The logit of a cluster is the cosine between its
    embedding and the projected output of the Transformer, divided by a temperature.
    """

    clusters: int = 500
    """Number of clusters."""
    projected: int = 256
    """Size of the embeddings of clusters."""
    temperature: float = 0.1
    """Number by which cosines are divided."""

    def __post_init__(self):
        super().__post_init__()
        if not self.has_mask_embedding:
            raise InputError("model.has_mask_embedding=False: frames are masked in pretraining; expected True")
        if self.clusters < 2 or not self.temperature > 0:
            raise InputError(
                f"model.clusters={self.clusters}, temperature={self.temperature}: expected at least 2, and above 0"
            )

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields in which a pretrained model may differ in a warm start."""
        return (*super().head_fields, "clusters", "projected", "temperature")

    def head_flops(self, frames: int) -> float:
        width = self.transformer.width
        return linear_flops(frames, width, self.projected) + linear_flops(frames, self.projected, self.clusters)

    def setup(self):
        super().setup()
        self.hidden_projection = Linear(
            "bti,id->btd", (self.transformer.width, self.projected), dtype=self.transformer.dtype
        )
        init = metadata.with_axes(nn.initializers.uniform(1.0), "vd")
        self.cluster_table = self.param("cluster_embedding", init, (self.clusters, self.projected))

    def __call__(
        self,
        samples: jax.Array,
        sample_mask: jax.Array | None = None,
        masked: jax.Array | None = None,
        train: bool = False,
    ) -> HubertOutput:
        """Predicts the cluster of each frame. For the arguments, see `encode`."""
        encoded = self.encode(samples, sample_mask, masked, train)
        predicted = unit(self.hidden_projection(encoded.hidden).astype(jnp.float32))
        logits = jnp.einsum("btd,vd->btv", predicted, unit(self.cluster_table)) / self.temperature
        return HubertOutput(hidden=encoded.hidden, logits=logits, frames=encoded.frames, means=encoded.means)
