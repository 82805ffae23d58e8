"""The big Transformer on WMT 2014 English to German (Vaswani et al. 2017).

    python train.py configs/transformer_big_wmt.py --workdir runs/transformer_big

The paper's settings: 300,000 steps of 25,000 tokens on either side, 28.4 BLEU on newstest2014 with averaged
checkpoints. It fits 16 chips of a TPU v5e (v5e:4x4): 4.6 of 16 GiB a device. Not run to its end yet: no accelerator was
at hand. The norms' epsilon, which the paper does not give, is
Marian's, so that a run can be exported as one.
"""

import jaxformer as jf

STACK = jf.layers.Transformer(
    width=1024,
    depth=6,
    heads=16,
    attention=jf.layers.Attention(),
    mlp=jf.layers.Mlp(4096, "relu"),
    norm=jf.layers.LayerNorm(1e-5),
    norm_position="after",
    dropout=0.3,
    attention_dropout=0.0,
    dtype="bfloat16",
)

experiment = jf.Experiment(
    model=jf.models.EncoderDecoder(STACK, STACK, vocab=37_000, max_length=256, zero_start=True),
    objective=jf.objectives.Seq2SeqLM(
        label_smoothing=0.1, decoding=jf.Decoding(max_new_tokens=200, num_beams=4, length_penalty=0.6), scored=500
    ),
    data=jf.data.Data(
        train=jf.data.Tfds("wmt14_translate/de-en", split="train"),
        validation=jf.data.Tfds("wmt14_translate/de-en", split="test"),
        task=jf.data.TextToText(256, 256, inputs="en", targets="de"),
        batch=96,
        pack=True,
        workers=8,
    ),
    tokenizer=jf.tokenizers.SentencePiece(vocab=37_000, model_type="bpe"),
    # 1024^-½ · 4000^-½ at the end of the warm-up.
    optimizer=jf.optimizers.AdamW(
        schedule=jf.optimizers.Schedule(4.94e-4, 4_000, "inverse_sqrt"), weight_decay=0.0, clip=None, b2=0.98, eps=1e-9
    ),
    steps=300_000,
    evaluation=jf.Evaluation(every=5_000),
    checkpoint=jf.Checkpoint(every=2_500, best="bleu"),
    log=jf.Log(every=100),
)
