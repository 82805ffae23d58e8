"""SpeechT5 (Ao et al. 2022): 12 + 6 layers × 768, fine-tuned on LibriTTS in the voices of its speakers.

    python train.py configs/speecht5_libritts.py --workdir runs/speecht5
    jaxformer predict runs/speecht5 "Good morning." --speaker speaker.npy --out speech.wav

The manifests are JSON Lines files made elsewhere: each line has the path of a sound (`audio`), its `text`, and the
x-vector of its speaker (`speaker`, 512 numbers; Snyder et al. 2018). Sounds are resampled to 16,000 samples per second.
The weights are those of microsoft/speecht5_tts. `predict` takes an x-vector as a .npy file. Griffin–Lim makes the
sound, or HiFi-GAN with `--vocoder microsoft/speecht5_hifigan`.

Not run yet: it needs accelerators, the data set and its x-vectors.
"""

import jaxformer as jf

WEIGHTS = "microsoft/speecht5_tts"
RELATIVE = jf.layers.RelativeKeys(160)

experiment = jf.Experiment(
    model=jf.models.SpeechT5(
        jf.models.speech_t5_stack(768, 12, 12, position_embedding=RELATIVE, dtype="bfloat16", remat="full"),
        jf.models.speech_t5_stack(768, 6, 12, dtype="bfloat16", remat="full"),
        vocab=81,
        max_length=600,
        max_frames=1876,
    ),
    objective=jf.objectives.SpeechFrames(),
    data=jf.data.Data(
        train=jf.data.SoundManifest(("libritts/train_clean.jsonl",)),
        validation=jf.data.SoundManifest(("libritts/dev_clean.jsonl",)),
        task=jf.data.SpokenText(
            jf.data.SpectrogramField(seconds=20), jf.data.LetterField(length=400), jf.data.VectorField(length=512)
        ),
        batch=64,
        workers=8,
    ),
    tokenizer=jf.tokenizers.HuggingFaceTokenizer(WEIGHTS),
    init=WEIGHTS,
    optimizer=jf.optimizers.AdamW(schedule=jf.optimizers.Schedule(peak=1e-4, warmup=1000, decay="linear"), b2=0.98),
    steps=40_000,
    evaluation=jf.Evaluation(every=2000),
    checkpoint=jf.Checkpoint(every=2000, best="loss"),
)
