"""Text to token ids, on `tokenizers.Tokenizer` directly.

The wrapper in transformers is left out on purpose: it changes truncation settings on every call, so two threads get
"Already borrowed" (transformers issue 47085), and it takes twice the time.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from tokenizers import Encoding, Tokenizer

from local_model.encoder import Encoder
from local_model.types import LoadError, OverLength

#: Characters per token the model reads: so much of a long text is looked at, then so much, until it is surely too long.
#: Most languages fill the model with the first; the time it takes does not depend on the length of the text.
STEPS = (8, 32)
#: Of a text that is cut, more than the last step is never read, even if the model could take more (only text of
#: words of hundreds of letters, or of spaces, has so few tokens).
READ = STEPS[-1]
#: A text with more than this is too long without looking (as in text-embeddings-inference).
GUARD = 250
CHARS_PER_TOKEN = 4  # of English text, to say about how long a text is that was not tokenized


class Encoded(msgspec.Struct, frozen=True):
    ids: list[int]  # special tokens included
    tokens: int  # of the whole text; an estimate where only its beginning was looked at
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

        Of a long text no more is tokenized than is needed to know its first `max_tokens` tokens, which are those of the
        whole text (within READ characters a token). Raises UnicodeError where what is looked at is not Unicode (lone
        surrogates).
        """
        limit = self._max_tokens
        if not truncate and len(text) > limit * GUARD:
            raise OverLength(len(text) // CHARS_PER_TOKEN, limit, about=True)
        part = text[: limit * STEPS[0]]
        encoding = self._encode(part)
        for step in STEPS[1:] if truncate else (*STEPS[1:], GUARD):
            if len(part) == len(text) or self._overflows(encoding):
                break
            part = text[: limit * step]
            encoding = self._encode(part)
        whole = len(part) == len(text)
        ids = encoding.ids
        tokens = len(ids) if whole else len(text) * len(ids) // len(part)
        if whole and len(ids) <= limit:
            return Encoded(ids, tokens)
        if not truncate:
            raise OverLength(tokens, limit, about=not whole)
        if len(ids) > limit:
            ids = ids[: limit - len(self._suffix)] + self._suffix
        return Encoded(ids, tokens, truncated=True)

    def _encode(self, text: str) -> Encoding:
        try:
            return self._tokenizer.encode(text)
        except TypeError:  # what the binding makes of a lone surrogate; its message would hold the text
            raise UnicodeError("the text is not valid Unicode") from None

    def _overflows(self, encoding: Encoding) -> bool:
        """More than the model reads, without the last word: that one may be cut, and have other tokens than whole."""
        if len(encoding.ids) <= self._max_tokens:
            return False
        words, behind = encoding.word_ids, len(self._suffix)
        return bool(words[self._max_tokens - behind - 1] != words[len(words) - behind - 1])


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
    from local_model.network import fast_tokenizer

    backend = fast_tokenizer(encoder)
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
