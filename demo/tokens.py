"""Word-piece tokenizers with a small vocabulary of their own."""

from __future__ import annotations

import string
from typing import Any

from transformers import BertTokenizer

from world_words import vocabulary

PAD, UNK, CLS, MASK, DEC, SEP = "[PAD]", "[UNK]", "[CLS]", "[MASK]", "[DEC]", "[SEP]"


def build_tokenizer(max_length: int, *, bos: str | None = None) -> BertTokenizer:
    """The world's words, and single letters to spell any other word.

    [SEP] gets the highest id because open_clip's text tower reads its answer where the id is
    highest.
    """
    letters = list(string.ascii_lowercase + string.digits)
    pieces = [f"##{letter}" for letter in letters]
    words = [word for word in vocabulary() if len(word) > 1]
    marks = [",", ".", "-", "'"]
    names = [PAD, UNK, CLS, MASK, DEC, *letters, *pieces, *marks, *words, SEP]
    extra: dict[str, Any] = {"bos_token": bos} if bos else {}
    tokenizer = BertTokenizer(
        vocab={name: index for index, name in enumerate(names)},
        model_max_length=max_length,
        **extra,
    )
    if len(tokenizer) != len(names):
        raise RuntimeError(f"the tokenizer has {len(tokenizer)} tokens, not {len(names)}")
    return tokenizer
