"""Tokenizers: trained on the training data, or taken from a run or from pretrained weights."""

from typing import TYPE_CHECKING

from jaxformer import namespaces

if TYPE_CHECKING:
    from jaxformer.data.tokenizers.configs import ByteLevelBpe as ByteLevelBpe
    from jaxformer.data.tokenizers.configs import Characters as Characters
    from jaxformer.data.tokenizers.configs import Phonemes as Phonemes
    from jaxformer.data.tokenizers.configs import SentencePiece as SentencePiece
    from jaxformer.data.tokenizers.configs import WordPiece as WordPiece
    from jaxformer.data.tokenizers.loading import load_tokenizer as load_tokenizer
    from jaxformer.data.tokenizers.tokenizer import Tokenizer as Tokenizer
    from jaxformer.interop.huggingface.runs import HuggingFaceTokenizer as HuggingFaceTokenizer
    from jaxformer.runs.run import RunTokenizer as RunTokenizer
else:
    __getattr__, __dir__, __all__ = namespaces.attach(
        __name__,
        {
            "data.tokenizers.configs": ("ByteLevelBpe", "Characters", "Phonemes", "SentencePiece", "WordPiece"),
            "data.tokenizers.loading": ("load_tokenizer",),
            "data.tokenizers.tokenizer": ("Tokenizer",),
            "interop.huggingface.runs": ("HuggingFaceTokenizer",),
            "runs.run": ("RunTokenizer",),
        },
    )
