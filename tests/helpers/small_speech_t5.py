"""A small SpeechT5 with its tokenizer of letters, as a folder of the transformers library."""

import io
import json
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz.,'"
TEXT = ("the quick brown fox jumps over the lazy dog.", "a light shone, and the dog ran. it's by the quiz, vexed.")
MELS, SPEAKER, ADDED = 6, 5, ("<mask>", "<ctc_blank>")


def letters() -> bytes:
    """A SentencePiece model whose tokens are letters, with the special tokens of SpeechT5."""
    import sentencepiece

    model = io.BytesIO()
    ids = {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_writer=model,
        model_type="char",
        vocab_size=4 + len(set("".join(TEXT))),
        hard_vocab_limit=False,
        minloglevel=2,
        **ids,
    )
    return model.getvalue()


def saved(folder: Path) -> Path:
    """Writes a model of the transformers library with random weights."""
    import sentencepiece
    import torch
    import transformers
    from hf_weights import redraw

    model = letters()
    size = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
    config = transformers.SpeechT5Config(
        vocab_size=size + len(ADDED),
        hidden_size=16,
        encoder_layers=2,
        encoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=24,
        num_mel_bins=MELS,
        speech_decoder_prenet_units=8,
        speech_decoder_postnet_units=8,
        speech_decoder_postnet_layers=3,
        speech_decoder_postnet_kernel=3,
        speaker_embedding_dim=SPEAKER,
        encoder_max_relative_position=6,
        max_text_positions=60,
        max_speech_positions=200,
    )
    network = transformers.SpeechT5ForTextToSpeech(config)
    redraw(network, seed=2, size=0.25)
    with torch.no_grad():
        network.speech_decoder_postnet.prob_out.bias.fill_(-1.5)  # Otherwise, all speech ends at once.
        network.speecht5.encoder.prenet.encode_positions.alpha.fill_(0.7)
        network.speecht5.encoder.wrapped_encoder.embed_positions.pe_k.weight.normal_(0, 0.5)
        for number, layer in enumerate(network.speech_decoder_postnet.layers):
            layer.batch_norm.running_mean.normal_(0, 0.1)
            layer.batch_norm.running_var.uniform_(0.5, 1.5 + number)
    network.save_pretrained(folder)
    (folder / "spm_char.model").write_bytes(model)
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "special_tokens_map.json").write_text(json.dumps({**special, "mask_token": "<mask>"}))
    added = {name: size + number for number, name in enumerate(ADDED)}
    (folder / "added_tokens.json").write_text(json.dumps(added))
    settings = {**special, "tokenizer_class": "SpeechT5Tokenizer", "normalize": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    transformers.SpeechT5FeatureExtractor(num_mel_bins=MELS).save_pretrained(folder)
    return folder
