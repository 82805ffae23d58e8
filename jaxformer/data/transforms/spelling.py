"""Reduces a text to the words that are spoken, for models that spell what they hear."""

import re
import unicodedata

_OTHERS = re.compile(r"[^\w']+|_")
_MARKS = re.compile(r"(?<!\w)'+|'+(?!\w)")


def spoken(text: str) -> str:
    """Converts a text to lower case, and replaces each run of characters other than letters, digits and apostrophes
    within words by a space.
    """
    folded = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    return " ".join(_MARKS.sub(" ", _OTHERS.sub(" ", folded)).split())
