"""Training steps of Whisper tiny and of a recognizer with CTC here and in PyTorch: sounds a second, in turns.

    pip install '.[torch]' && python benchmarks/speech_steps.py [ROW ...]

Whisper has the sizes of the paper's tiny model and reads windows of 30 seconds. The recognizer is the wav2vec 2.0 of
`configs/ctc_spoken_bible.py`, on sounds of six seconds. Both are without dropout, with AdamW and clipping, in
float32. PyTorch's side is the class of transformers, eager and through torch.compile, which also computes the losses.
Each side has a process of its own, and they take turns.
"""

import sys

from rows import SIDES, Row, of_stacks
from vision_steps import measure

WHISPER = of_stacks(SIDES, width=384, depth=4, heads=6, dtype="float32", remat="none")
ROWS = (
    Row("whisper_tiny", "whisper_small", 2, "whisper", WHISPER, unit="windows"),
    Row("wav2vec2_ctc", "ctc_spoken_bible", 8, "wav2vec2", of_stacks(["transformer"], dtype="float32"), unit="sounds"),
)


if __name__ == "__main__":
    sys.exit(measure(ROWS, __doc__))
