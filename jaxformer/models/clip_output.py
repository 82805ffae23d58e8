"""Output of models that have an image encoder and a text encoder, such as CLIP."""

from typing import ClassVar

import flax.struct
import jax

from jaxformer.models.base import ModelOutput


@flax.struct.dataclass
class ClipOutput(ModelOutput):
    """Output of a model with an image encoder and a text encoder, such as CLIP."""

    image_vectors: jax.Array | None = None
    """Image vectors with an L2 norm of 1, float32 [images, embed]. None if no images were given."""
    text_vectors: jax.Array | None = None
    """Text vectors with an L2 norm of 1, float32 [texts, embed]. None if no texts were given."""
    scale: jax.Array | None = None
    """Learned scalar by which dot products of image and text vectors are multiplied."""
    bias: jax.Array | None = None
    """Learned scalar that is added to the scaled dot products. None if the model has no bias."""

    exported: ClassVar[tuple[str, ...]] = ("logits", "image_vectors", "text_vectors")

    @property
    def logits(self) -> jax.Array | None:
        """Similarity score of each image with each text, float32 [images, texts]. None unless both images and texts are
        given.
        """
        if self.image_vectors is None or self.text_vectors is None or self.scale is None:
            return None
        scores = self.scale * (self.image_vectors @ self.text_vectors.T)
        return scores if self.bias is None else scores + self.bias

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks: image vectors, or text vectors if no images were given."""
        return self.text_vectors if self.image_vectors is None else self.image_vectors
