"""Layers from which models are composed."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.layers.adaptive import AdaGate as AdaGate
    from jaxformer.layers.adaptive import AdaLayerNorm as AdaLayerNorm
    from jaxformer.layers.attention import Attention as Attention
    from jaxformer.layers.attention_pooling import AttentionPooling as AttentionPooling
    from jaxformer.layers.backbones import PatchBackbone as PatchBackbone
    from jaxformer.layers.backbones import ResNet as ResNet
    from jaxformer.layers.block import Block as Block
    from jaxformer.layers.conv_mlp import ConvMlp as ConvMlp
    from jaxformer.layers.dropout import Dropout as Dropout
    from jaxformer.layers.embeddings import Embeddings as Embeddings
    from jaxformer.layers.experts import ExpertMlp as ExpertMlp
    from jaxformer.layers.linear import Linear as Linear
    from jaxformer.layers.linear import LMHead as LMHead
    from jaxformer.layers.lora import Lora as Lora
    from jaxformer.layers.masks import Mask as Mask
    from jaxformer.layers.mlp import GatedMlp as GatedMlp
    from jaxformer.layers.mlp import HeadLayer as HeadLayer
    from jaxformer.layers.mlp import Mlp as Mlp
    from jaxformer.layers.norms import HeadRMSNorm as HeadRMSNorm
    from jaxformer.layers.norms import LayerNorm as LayerNorm
    from jaxformer.layers.norms import RMSNorm as RMSNorm
    from jaxformer.layers.patches import ImageEmbeddings as ImageEmbeddings
    from jaxformer.layers.positions import RelativeKeys as RelativeKeys
    from jaxformer.layers.positions import RelativePositions as RelativePositions
    from jaxformer.layers.positions import Rotary as Rotary
    from jaxformer.layers.quantizer import ProductQuantizer as ProductQuantizer
    from jaxformer.layers.residual import ResidualBranch as ResidualBranch
    from jaxformer.layers.transformer import Transformer as Transformer
    from jaxformer.layers.transformer import Variant as Variant
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "layers.adaptive": ("AdaGate", "AdaLayerNorm"),
            "layers.attention": ("Attention",),
            "layers.attention_pooling": ("AttentionPooling",),
            "layers.backbones": ("PatchBackbone", "ResNet"),
            "layers.block": ("Block",),
            "layers.conv_mlp": ("ConvMlp",),
            "layers.dropout": ("Dropout",),
            "layers.embeddings": ("Embeddings",),
            "layers.experts": ("ExpertMlp",),
            "layers.linear": ("LMHead", "Linear"),
            "layers.lora": ("Lora",),
            "layers.masks": ("Mask",),
            "layers.mlp": ("GatedMlp", "HeadLayer", "Mlp"),
            "layers.norms": ("HeadRMSNorm", "LayerNorm", "RMSNorm"),
            "layers.patches": ("ImageEmbeddings",),
            "layers.positions": ("RelativeKeys", "RelativePositions", "Rotary"),
            "layers.quantizer": ("ProductQuantizer",),
            "layers.residual": ("ResidualBranch",),
            "layers.transformer": ("Transformer", "Variant"),
        },
    )
