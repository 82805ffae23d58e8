"""Texts that are difficult for tokenizers: spaces, combining marks, scripts, emoji, compatibility characters, code.

Some texts contain names of special tokens, such as `[MASK]`. A tokenizer that does not have the token must treat its
name as ordinary text.
"""

from jaxformer.data.tokenizers.special_tokens import NAMES

HARD_STRINGS = (
    "In the beginning God created the heavens and the earth.",
    "  Leading, trailing  and   double spaces  ",
    "tabs\tand\nlines\r\n\r\nof text",
    "UPPER lower MiXeD İstanbul ẞtraße ΣΑΣ",
    "naïve café Ångström; e\u0301 a\u0308 o\u0302\u0323",
    "Việt Nam, tiê\u0301ng Viê\u0323t",
    "日本語 ひらがな か\u3099 カタカナ ﾊﾝｶｸ 한국어 \u1112\u1161\u11ab 中文",
    "हिन्दी क़ العربية עִבְרִית ภาษาไทย русский",
    "😀 👩‍👩‍👧 🇩🇪 ™️ ‼️ ☎️",
    "ﬁne ½ x² ™ … „quotes“ ‘single’ —dash– ～",
    "zero\u200bwidth \u200d no\u00a0break \u3000wide\ufeff",
    "1,234.56 0x1F 3.14e-10 $5 50% #tag @name",
    "don't it's we'll I'M O'Neil",
    "supercalifragilisticexpialidocious" * 4,
    "f(x) = {a[i] for i in range(10)}  # code",
    "",
    " ",
)

_SPECIAL = dict.fromkeys(name for names in NAMES.values() for name in names)
NAMED_STRINGS = tuple(
    text for name in (*_SPECIAL, "<|im_start|>", "<extra_id_0>", ">>fra<<") for text in (f"a{name}b", f"a {name} b")
)
"""Texts that contain the name of one special token each, with and without spaces around it."""
