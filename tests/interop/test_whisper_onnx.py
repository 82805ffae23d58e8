"""The ONNX programs of Whisper have the names of optimum, and write what our own decoding writes."""

import re

import numpy as np
import pytest
import small_whisper

import jaxformer as jf
from jaxformer.decoding.generate import Prompt, generate
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.export.onnx_export import export_onnx
from jaxformer.interop.export.onnx_files import call, empty_past, open_session, past_of

pytestmark = pytest.mark.slow
NEW = 12


def greedy(folder, features, start):
    """Generates tokens with the encoder and the decoder that has both branches."""
    encoder, decoder = (
        open_session(folder / "onnx" / f"{name}.onnx") for name in ("encoder_model", "decoder_model_merged")
    )
    fixed = {"encoder_hidden_states": call(encoder, {"input_features": features})["last_hidden_state"]}
    tokens, past, found = np.array([[start]]), empty_past(decoder, 1), []
    for number in range(NEW):
        given = {"input_ids": tokens, "use_cache_branch": np.array([number > 0])}
        outputs = call(decoder, given | fixed | past)
        past = past_of(outputs, past)
        tokens = outputs["logits"][:, -1].argmax(-1)[None]
        found.append(int(tokens[0, 0]))
    return found


def test_programs_write_what_our_own_decoding_writes(tmp_path):
    run = jf.from_pretrained(small_whisper.saved(tmp_path / "theirs"))
    said = export_onnx(run, tmp_path / "out")
    assert re.fullmatch(r"outputs differ by \d\.\de-0[678] at most, relative to the largest", said)
    rng = np.random.default_rng(0)
    log_mel = rng.normal(0, 0.5, (small_whisper.FRAMES, small_whisper.MELS)).astype(np.float32)
    start = small_whisper.ids()["startoftranscript"]
    prompt = Prompt(np.array([start], np.int32), {"log_mel": log_mel})
    [expected] = generate(run.model, run.params, [prompt], Decoding(max_new_tokens=NEW), start=start)
    assert greedy(tmp_path / "out", log_mel.T[None].copy(), start) == expected.tolist()
