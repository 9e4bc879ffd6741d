"""Text to token ids, on `tokenizers.Tokenizer` directly.

The wrapper in transformers is left out on purpose: it changes truncation settings on every call, so two threads get
"Already borrowed" (transformers issue 47085), and it takes twice the time.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from tokenizers import Tokenizer

from local_model.encoder import Encoder
from local_model.types import LoadError, OverLength

#: A text with more characters than this per token the model reads is too long without looking (as in
#: text-embeddings-inference): a book is refused in microseconds.
CHARS_PER_TOKEN_GUARD = 250
CHARS_PER_TOKEN = 4  # of English text, to say about how long a text is that was not tokenized


class Encoded(msgspec.Struct, frozen=True):
    ids: list[int]  # special tokens included
    truncated: bool = False


class TextTokenizer:
    """One tokenizer, its limits and its special tokens. Safe from several threads: nothing is set after the start."""

    def __init__(self, tokenizer: Tokenizer, max_tokens: int) -> None:
        tokenizer.no_truncation()  # length is measured, never cut in silence
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._suffix = _suffix(tokenizer)
        if max_tokens <= len(tokenizer.encode("").ids):
            raise LoadError(f"max_tokens = {max_tokens} leaves no room beside the special tokens")

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    def encode(self, text: str, *, truncate: bool) -> Encoded:
        """Raises OverLength for a text that is too long, unless `truncate`: then its end is cut, special tokens kept.

        Raises UnicodeError for a text that is not Unicode (lone surrogates).
        """
        limit = self._max_tokens
        guard = limit * CHARS_PER_TOKEN_GUARD
        long = len(text) > guard
        if long and not truncate:
            raise OverLength(len(text) // CHARS_PER_TOKEN, limit, about=True)
        ids = self._ids(text[:guard])
        if len(ids) <= limit:
            return Encoded(ids, truncated=long)
        if not truncate:
            raise OverLength(len(ids), limit)
        return Encoded(ids[: limit - len(self._suffix)] + self._suffix, truncated=True)

    def count(self, text: str) -> int:
        """Tokens of the text, special tokens included; beyond the guard an estimate from its characters."""
        if len(text) > self._max_tokens * CHARS_PER_TOKEN_GUARD:
            return len(text) // CHARS_PER_TOKEN
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text).ids)
        except TypeError:  # what the binding makes of a lone surrogate; its message would hold the text
            raise UnicodeError("the text is not valid Unicode") from None


def load(encoder: Encoder, cache_dir: Path) -> TextTokenizer:
    """The encoder's tokenizer. A model that has only a vocabulary is converted once and kept in `cache_dir`."""
    file = encoder.path / "tokenizer.json"
    if not file.is_file():
        file = cache_dir / "tokenizers" / f"{encoder.tokenizer_digest}.json"
        if not file.is_file():
            _convert(encoder, file)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the binding raises nothing narrower
        raise LoadError(f"{file} is not a tokenizer: {error}") from error
    return TextTokenizer(tokenizer, encoder.max_tokens)


def _convert(encoder: Encoder, target: Path) -> None:
    from transformers import AutoTokenizer

    try:
        made = AutoTokenizer.from_pretrained(str(encoder.path), local_files_only=True, trust_remote_code=False)
        backend: Tokenizer = made.backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise LoadError(
            f"{encoder.path} has no tokenizer.json, and none could be made of its other files: {error}"
        ) from error
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}")
    backend.save(str(part))
    part.replace(target)


def _suffix(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that stand behind every text: [SEP], </s>, or none."""
    encoding = tokenizer.encode("a")
    suffix: list[int] = []
    for token, special in zip(reversed(encoding.ids), reversed(encoding.special_tokens_mask), strict=True):
        if not special:
            break
        suffix.insert(0, token)
    return suffix
