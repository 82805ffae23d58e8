"""How a folder's model generates is read whole: each field is honoured or refused by name."""

import json

import pytest
import transformers
from hf_models import VOCAB, redrawn
from hypothesis import given
from hypothesis import strategies as st
from small_writer import small_tokenizer

from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.config_reader import ConfigReader
from jaxformer.interop.huggingface.folders import Folder
from jaxformer.interop.huggingface.generation_config import (
    FIELDS,
    HARMLESS,
    REFUSED,
    decoding_of,
    end_tokens,
    generation_fields,
    read_decoding,
    start_token,
)

del VOCAB, redrawn  # Importing their module keeps transformers quiet.

IDS = st.lists(st.integers(0, 99), min_size=1, max_size=3).map(tuple)
SHARE, FACTOR = st.floats(0.01, 0.99), st.floats(0.1, 5)
ALWAYS = {
    "max_new_tokens": st.integers(1, 300),
    "repetition_penalty": FACTOR,
    "length_penalty": st.floats(-2, 2),
    "early_stopping": st.sampled_from([False, True, "never"]),
    "max_length": st.integers(1, 300),
    "min_new_tokens": st.integers(0, 9),
    "min_length": st.integers(0, 9),
    "eos_token_ids": IDS,
    "encoder_repetition_penalty": FACTOR,
    "no_repeat_ngram_size": st.integers(0, 4),
    "encoder_no_repeat_ngram_size": st.integers(0, 4),
    "bad_words_ids": st.lists(IDS, max_size=3).map(tuple),
    "suppress_tokens": IDS.map(lambda ids: tuple(token + 100 for token in ids)),  # None is both forced and suppressed.
    "begin_suppress_tokens": IDS,
    "forced_bos_token_id": st.integers(0, 99),
    "forced_eos_token_ids": IDS,
    "exponential_decay_length_penalty": st.tuples(st.integers(0, 9), FACTOR),
    "renormalize_logits": st.booleans(),
}
CUTS = {"top_k": st.integers(1, 60), "top_p": SHARE, "min_p": SHARE, "typical_p": SHARE}
CUTS |= {"epsilon_cutoff": SHARE, "eta_cutoff": SHARE}


@st.composite
def decodings(draw):
    """Any settings, of greedy decoding, of sampling or of a beam search."""
    kind = draw(st.sampled_from([{}, {"num_beams": st.integers(2, 9)}, {"temperature": st.floats(0.1, 9)}]))
    settings = draw(st.fixed_dictionaries(kind, optional=ALWAYS | (CUTS if "temperature" in kind else {})))
    if draw(st.booleans()) and "max_length" in settings:
        settings["max_new_tokens"] = None
    return Decoding(**settings)


@given(decodings())
def test_settings_go_to_transformers_and_come_back(decoding):
    """Through its own class and its file too, which leaves out what it takes for granted."""
    fields = generation_fields(decoding)
    assert decoding_of(json.loads(json.dumps(fields)), Decoding()) == decoding
    theirs = transformers.GenerationConfig(**fields).to_diff_dict()
    assert decoding_of(theirs, Decoding()) == decoding


def test_all_fields_of_transformers_are_known():
    known = FIELDS | HARMLESS
    assert set(vars(transformers.GenerationConfig())) - known <= {"_original_object_hash", "_user_set_attributes"}
    assert not FIELDS & HARMLESS


REFUSALS = {
    **{name: ({name: 7}, f"{name}=7 is not supported") for name in REFUSED},
    "unknown": ({"chat_mode": "x"}, "chat_mode='x' is not supported; expected no such field"),
    "two": ({"stop_strings": ["a"], "max_time": 1.5}, "max_time=1.5 is .*; stop_strings=.'a'. is not supported"),
    "drawn beams": ({"do_sample": True, "num_beams": 4}, "do_sample=True with num_beams=4 is not supported"),
    "stopping": ({"early_stopping": "soon"}, "early_stopping='soon': expected true, false or 'never'"),
    "text in draws": ({"do_sample": True, "temperature": "a"}, "temperature='a': expected a float"),
    "list in draws": ({"do_sample": True, "temperature": [1]}, "temperature=.*: expected a float"),
    "text": ({"num_beams": "4"}, "num_beams='4': expected an int"),
    "negative": ({"eos_token_id": [3, -1]}, "decoding.eos_token_ids=.*: expected ids of tokens, 0 or above"),
}


@pytest.mark.parametrize("fields, message", REFUSALS.values(), ids=REFUSALS)
def test_what_cannot_be_honoured_is_refused_by_name(fields, message, tmp_path):
    with pytest.raises(InputError, match=message):
        decoding_of(fields, Decoding())
    with pytest.raises(InputError, match=rf"{tmp_path}/generation_config.json: "):
        read_decoding(Folder(tmp_path, {}, fields, {}), Decoding(), small_tokenizer(tmp_path))


def test_fields_that_change_nothing_are_accepted():
    fields = REFUSED | dict.fromkeys(FIELDS) | dict.fromkeys(HARMLESS, 3)
    assert decoding_of(fields, Decoding(max_new_tokens=31)) == Decoding(max_new_tokens=31)


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({"do_sample": True}, Decoding(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": None}, Decoding(temperature=1.0, top_k=50)),
        ({"do_sample": True, "top_k": 0, "temperature": 2}, Decoding(temperature=2.0)),
        ({"top_p": 0.5, "top_k": 7, "temperature": 0.3}, Decoding()),
        ({"eos_token_id": 7}, Decoding(eos_token_ids=(7,))),
        ({"eos_token_id": [7, 2], "forced_eos_token_id": 2}, Decoding(eos_token_ids=(7, 2), forced_eos_token_ids=(2,))),
        ({"max_length": 20}, Decoding(max_new_tokens=None, max_length=20)),
        ({"max_length": 20, "max_new_tokens": 9}, Decoding(max_new_tokens=9, max_length=20)),
    ],
)
def test_defaults_are_those_of_transformers(fields, expected):
    assert decoding_of(fields, Decoding()) == expected


def test_without_a_generation_config_the_config_says_it(tmp_path):
    tokenizer = small_tokenizer(tmp_path)
    config = {"num_beams": 4, "no_repeat_ngram_size": 3, "eos_token_id": tokenizer.eos_id, "vocab_size": 9}
    assert read_decoding(Folder(tmp_path, config, {}, {}), Decoding(), tokenizer) == Decoding(
        num_beams=4, no_repeat_ngram_size=3
    )
    old = {"force_bos_token_to_be_generated": True, "bos_token_id": 2}
    assert read_decoding(Folder(tmp_path, old, {}, {}), Decoding(), tokenizer).forced_bos_token_id == 2
    generation = {"max_new_tokens": 5}
    assert read_decoding(Folder(tmp_path, config, generation, {}), Decoding(), tokenizer) == Decoding(5)
    with pytest.raises(InputError, match=rf"{tmp_path}/config.json: diversity_penalty=0.5 is not supported"):
        read_decoding(Folder(tmp_path, {"diversity_penalty": 0.5}, {}, {}), Decoding(), tokenizer)
    ConfigReader(dict.fromkeys(FIELDS, 3), "config.json").finish()  # Models are built whatever is said of generation.


@pytest.mark.parametrize("ids", [None, (7,), (7, 3)])
def test_the_end_tokens_that_are_used_are_written(ids, tmp_path):
    tokenizer = small_tokenizer(tmp_path)
    fields = end_tokens(Decoding(eos_token_ids=ids), tokenizer)
    assert fields == {"eos_token_id": {None: tokenizer.eos_id, (7,): 7, (7, 3): [7, 3]}[ids]}
    found = read_decoding(Folder(tmp_path, {}, fields, {}), Decoding(), tokenizer)
    assert found.eos_token_ids == ids


@pytest.mark.parametrize(
    "config, generation, kind",
    [
        ({"decoder_start_token_id": 0, "eos_token_id": [3]}, {}, "padding"),
        ({"decoder_start_token_id": 0}, {"decoder_start_token_id": 3, "eos_token_id": [3, 9]}, "end"),
        ({"decoder_start_token_id": 2}, {}, "beginning"),
        ({}, {}, "padding"),
    ],
)
def test_the_start_token_is_the_tokenizers(config, generation, kind, tmp_path):
    assert start_token(Folder(tmp_path, config, generation, {}), small_tokenizer(tmp_path)) == kind


def test_another_start_token_is_refused(tmp_path):
    message = r"decoder_start_token_id=9: expected one of the tokenizer's 0 \(padding\), 3 \(end\), 2 \(beginning\)"
    with pytest.raises(InputError, match=message):
        start_token(Folder(tmp_path, {"decoder_start_token_id": 9}, {}, {}), small_tokenizer(tmp_path))
