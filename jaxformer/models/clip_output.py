"""Output of models with an image encoder and a text encoder."""

from typing import ClassVar

import flax.struct
import jax

from jaxformer.models.base import ModelOutput


@flax.struct.dataclass
class ClipOutput(ModelOutput):
    """Output of the image encoder and the text encoder."""

    image_vectors: jax.Array | None = None
    """Image vectors with an L2 norm of 1, float32 [images, embed]. None without images."""
    text_vectors: jax.Array | None = None
    """Text vectors with an L2 norm of 1, float32 [texts, embed]. None without texts."""
    scale: jax.Array | None = None
    """Factor of the dot products of image and text vectors, a scalar."""
    bias: jax.Array | None = None
    """Bias added to the scaled dot products, a scalar. None if the model has no bias."""

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
        """Vectors for downstream use: image vectors, or text vectors if there are no images."""
        return self.text_vectors if self.image_vectors is None else self.image_vectors
