"""Segmentation models small enough for a test."""

from jaxformer.layers.backbones import PatchBackbone
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.segformer import SegFormer, segformer_stage
from jaxformer.models.segmenter import Segmenter

LABELS = ("red", "green")
FIELDS = {"norm": LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
LINEAR = Segmenter(Transformer(16, 1, 2, **FIELDS), LABELS, None, image=16, patch=4)
MASKED = Segmenter(Transformer(16, 1, 2, **FIELDS), LABELS, Transformer(8, 1, 2, **FIELDS), image=16, patch=4)
WITH_STEM = Segmenter(
    Transformer(16, 1, 2, **FIELDS), LABELS, None, PatchBackbone(16, 4, (8,), "float32"), image=16, patch=4
)
SEGFORMER = SegFormer(
    segformer_stage(8, 1, 1, 4),
    segformer_stage(12, 2, 2, 2),
    segformer_stage(16, 1, 2, 2),
    segformer_stage(20, 1, 4, 1),
    LABELS,
    12,
    64,
)
