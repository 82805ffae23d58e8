"""Step 2 of the data pipeline: text to token ids and back.

`SentencePiece` (Kudo & Richardson 2018), `WordPiece` (Devlin et al. 2019) and `ByteLevelBpe` (Radford et al. 2019) are
configs; their `build` gives a `Tokenizer`, which a run keeps in a folder of its own and `load_tokenizer` reads.
"""

from jaxformer.data.tokenizers.configs import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.data.tokenizers.loading import load_tokenizer
from jaxformer.data.tokenizers.tokenizer import Tokenizer

__all__ = ["ByteLevelBpe", "SentencePiece", "Tokenizer", "WordPiece", "load_tokenizer"]
