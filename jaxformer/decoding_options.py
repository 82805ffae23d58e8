"""Command line options for text generation, speech transcription, speech synthesis and image generation."""


def _ids(word: str) -> tuple[int, ...]:
    return tuple(int(part) for part in word.split(","))


def _sequences(word: str) -> tuple[tuple[int, ...], ...]:
    return tuple(_ids(part.replace("+", ",")) for part in word.split(","))


def _decay(word: str) -> tuple[int, float]:
    start, factor = word.split(",")
    return int(start), float(factor)


def _numbers(word: str) -> tuple[float, ...]:
    return tuple(float(part) for part in word.split(","))


def _flag(word: str) -> bool:
    if word.lower() not in ("true", "false"):
        raise ValueError(word)
    return word.lower() == "true"


DECODING = {
    "max_new_tokens": (int, "maximum number of new tokens"),
    "temperature": (
        float,
        "sampling temperature: lower is less random, above 1 more random; 0 always takes the likeliest token",
    ),
    "top_k": (int, "sample from this many of the likeliest tokens"),
    "top_p": (float, "sample from the smallest set of likeliest tokens that has this total probability"),
    "min_p": (float, "sample from tokens with at least this fraction of the likeliest token's probability"),
    "repetition_penalty": (float, "above 1 makes tokens that occurred before less likely"),
    "num_beams": (int, "number of beams of a beam search; 1 turns it off"),
    "length_penalty": (float, "for beam search: above 0 favours long outputs"),
    "early_stopping": (str, "when a beam search ends: False, True or never (as in transformers)"),
    "seed": (int, "random seed of the sampling"),
    "max_length": (int, "maximum number of tokens of prompt and output together; replaces max_new_tokens"),
    "min_new_tokens": (int, "minimum number of new tokens before the EOS token"),
    "min_length": (int, "minimum number of tokens of prompt and output together before the EOS token"),
    "eos_token_ids": (_ids, "tokens that end an output, such as 2,7; by default the tokenizer's EOS token"),
    "typical_p": (float, "locally typical sampling from tokens that have this total probability"),
    "epsilon_cutoff": (float, "sample from tokens with at least this probability"),
    "eta_cutoff": (float, "like epsilon_cutoff, but lower when the model is uncertain"),
    "encoder_repetition_penalty": (float, "above 1 makes tokens of the prompt more likely"),
    "no_repeat_ngram_size": (int, "length of the n-grams that may not occur twice"),
    "encoder_no_repeat_ngram_size": (int, "length of the prompt's n-grams that may not occur in the output"),
    "bad_words_ids": (_sequences, "token sequences that are never generated, such as 5,6+7: 5, and 6 followed by 7"),
    "suppress_tokens": (_ids, "tokens that are never generated, such as 5,6"),
    "begin_suppress_tokens": (_ids, "tokens that are never generated as the first token"),
    "forced_bos_token_id": (int, "first token to generate after a start token or a prompt of one token"),
    "forced_eos_token_ids": (_ids, "one of these tokens is generated last when the maximum length is reached"),
    "exponential_decay_length_penalty": (
        _decay,
        "START,FACTOR: after START new tokens the EOS token becomes more likely, exponentially by FACTOR",
    ),
    "renormalize_logits": (_flag, "true: normalize the scores of a beam search after all these changes"),
}
"""Maps the field names of `Decoding` to (function that parses the command line value, help text). They are defined here
so that the command line can use them without importing the decoding package.
"""

SEARCH = {
    "language_model": (str, "for CTC with num_beams above 1: an n-gram file (ARPA), or the folder of a GPT's run"),
    "lm_weight": (float, "for CTC: weight of the language model"),
    "word_bonus": (float, "for CTC with a language model: number added to the score of a text for each word"),
}
"""Maps the field names of `CtcSearch` that are command line options to (function that parses the value, help text).
`num_beams` is also one of `Decoding`.
"""

SAMPLING = {
    "guidance": (float, "above 1 makes images follow their text or class more closely"),
    "pictures": (int, "number of images per text or class"),
    "steps": (int, "number of steps from noise to an image"),
    "method": (str, "heun, or euler, which evaluates the model once instead of twice per step"),
}
"""Maps the field names of `Sampling` that are command line options to (function that parses the value, help text).
`seed` is also one of `Decoding`.
"""

TRANSCRIBING = {
    "language": (str, "language that is spoken, such as de, or auto to detect it"),
    "speech_task": (str, "transcribe, or translate to English"),
    "timestamps": (_flag, "whether to divide the text into segments with times"),
    "word_times": (_flag, "whether to compute the time of each word"),
    "temperatures": (_numbers, "temperatures to try until the text of a window is plausible, such as 0,0.4,0.8"),
    "condition_on_previous": (_flag, "whether each window of a long sound is given the text before it"),
}
"""Maps the field names of `Transcribing` that are command line options to (function that parses the value, help text).
"""

SPEAKING = {
    "speed": (float, "speed of the speech; 1 is that of the training data"),
    "speaker": (str, "a .npy file with the vector of a speaker, for models of several speakers"),
    "iterations": (int, "number of iterations of Griffin–Lim, which makes the sound if there is no vocoder"),
}
"""Maps the field names of `Speaking` that are command line options to (function that parses the value, help text)."""
