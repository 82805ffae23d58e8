"""Step 2 of the data pipeline: tokenizers convert text to token ids and back.

`SentencePiece` (Kudo & Richardson 2018), `WordPiece` (Devlin et al. 2019) and `ByteLevelBpe` (Radford et al. 2019) are
configurations. Their method `build` returns a `Tokenizer` and saves it in a subfolder of the run. `load_tokenizer`
loads it from there.
"""

from jaxformer.data.tokenizers.configs import ByteLevelBpe, Characters, Phonemes, SentencePiece, WordPiece
from jaxformer.data.tokenizers.loading import load_tokenizer
from jaxformer.data.tokenizers.tokenizer import Tokenizer

__all__ = ["ByteLevelBpe", "Characters", "Phonemes", "SentencePiece", "Tokenizer", "WordPiece", "load_tokenizer"]
