"""A small GPT that learns to generate text from the World English Bible on two CPU cores: a config to start from.

    jaxformer train config_template.py --workdir runs/config_template
    jaxformer predict runs/config_template "And it happened in those days"

Every field is a flag too, such as --steps 200; `jaxformer train config_template.py --help` lists them all.
"""

import jaxformer as jf

experiment = jf.Experiment(
    # Other models are jf.models.Bert, T5, EncoderDecoder, Vit, ...; each has objectives and tasks that fit it.
    model=jf.models.Gpt(
        jf.layers.Transformer(
            width=128,  # the size of each token's vector
            depth=4,  # number of blocks
            heads=4,  # number of attention heads; divides the width
            attention=jf.layers.Attention(bias=False),
            position_embedding=jf.layers.Rotary(),
            norm=jf.layers.RMSNorm(),
            mlp=jf.layers.GatedMlp(),
            dropout=0.0,
            attention_dropout=0.0,
            # dtype="bfloat16",  # faster on accelerators
        ),
        vocab=4096,  # at least the size of the tokenizer's vocabulary
        max_length=256,  # maximum length of an input in tokens
    ),
    # Learns to predict the next token. `decoding` sets how `predict` generates text.
    objective=jf.objectives.CausalLM(decoding=jf.Decoding(max_new_tokens=100, temperature=0.8, top_p=0.95)),
    data=jf.data.Data(
        # Text of your own: jf.data.TextFiles(("corpus/*.txt",)), documents separated by blank lines;
        # jf.data.JsonLines(("corpus/*.jsonl",)), one {"text": ...} per line.
        train=jf.data.Tfds("bible/web", split="train"),
        validation=jf.data.Tfds("bible/web", split="validation"),  # held-out data; if None, nothing is evaluated
        task=jf.data.NextToken(length=128),  # tokens per row
        batch=16,  # rows per step
        pack=True,  # puts several short texts into one row
    ),
    # Trained on the training data at the first start, and kept in the run's folder.
    tokenizer=jf.tokenizers.SentencePiece(vocab=4096),
    # AdamW, Lion and Adafactor need a lower peak learning rate.
    optimizer=jf.optimizers.Muon(schedule=jf.optimizers.Schedule(peak=4e-3, warmup=100, decay="cosine")),
    steps=1000,
    seed=0,
    # mesh=jf.Mesh(fsdp=-1),  # splits parameters and optimizer over all devices
    # init="runs/other",  # initial parameters: from a run, a Hugging Face folder, or a name on the hub
    evaluation=jf.Evaluation(every=500),
    checkpoint=jf.Checkpoint(every=500),
    log=jf.Log(every=50),
)
