"""Step 2 of the data pipeline: tokenizers convert text to token ids and back.

`SentencePiece` (Kudo & Richardson 2018), `WordPiece` (Devlin et al. 2019) and `ByteLevelBpe` (Radford et al. 2019) are
configurations. Their `build` returns a `Tokenizer`, which is saved in a subfolder of the run. `load_tokenizer` reads
it.
"""

from jaxformer.data.tokenizers.configs import ByteLevelBpe, SentencePiece, WordPiece
from jaxformer.data.tokenizers.loading import load_tokenizer
from jaxformer.data.tokenizers.tokenizer import Tokenizer

__all__ = ["ByteLevelBpe", "SentencePiece", "Tokenizer", "WordPiece", "load_tokenizer"]
