"""What makes two requests the same: `co:{version}:{tenant}:{task}:{generation}:{text digest}:{identity digest}`.

Digests are keyed BLAKE2b over length-prefixed parts: no two lists of parts encode alike, and whoever reads Redis can't
test guesses of short texts without the secret. Everything that changes an answer is a part of its identity; what is
applied on read (the policy) is not, so that a new threshold drops no paid answer.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import sys
import unicodedata
from collections.abc import Iterable
from functools import cache
from pathlib import Path

#: Version of key and entry layout; a new one leaves old entries to expire.
VERSION = "1"
#: Version of `normalize`.
NORMALIZATION = "nfc-strip-2"
#: Composing takes time quadratic in the length of a run of combining marks. Unicode's Stream-Safe format (UAX 15)
#: allows 30; a text with a longer run is left as it is.
LONGEST_RUN = 30


def normalize(text: str) -> str:
    """NFC, without white space around it. The model is shown exactly this: what the key drops, nobody sees."""
    if text.isascii() or too_many_marks().search(text):
        return text.strip()
    return unicodedata.normalize("NFC", text).strip()


@cache
def too_many_marks() -> re.Pattern[str]:
    """Finds a run of more than `LONGEST_RUN` combining marks. Takes a tenth of a second to make, once."""
    marks = "".join(chr(code) for code in range(0x300, sys.maxunicode) if unicodedata.combining(chr(code)))
    return re.compile(f"[{re.escape(marks)}]{{{LONGEST_RUN + 1}}}")


def digest(secret: bytes, parts: Iterable[str], size: int = 16) -> bytes:
    """Keyed BLAKE2b of `parts`, each prefixed with its length; `size` bytes."""
    state = hashlib.blake2b(digest_size=size, key=secret)
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.digest()


def text_digest(secret: bytes, tenant: str, text: str) -> bytes:
    """Of a normalized text: 16 bytes; another tenant's digest of the same text is another."""
    return digest(secret, (NORMALIZATION, tenant, text))


def identity_digest(secret: bytes, parts: Iterable[str]) -> str:
    """Of an `identity`: 16 hex digits."""
    return digest(secret, parts, 8).hex()


def entry_key(tenant: str, task: str, generation: str, text: bytes, identity: str) -> str:
    """Names of tenants and tasks hold no colon (router.config.Name), so the parts can be told apart."""
    return f"co:{VERSION}:{tenant}:{task}:{generation}:{text.hex()}:{identity}"


def generation_key(task: str) -> str:
    return f"co:{VERSION}:generation:{task}"


def new_generation() -> str:
    return secrets.token_hex(4)


def load_secret(configured: str, state_dir: Path) -> bytes:
    """The configured secret, else one made once in the state folder (hosts that share a Redis must configure one)."""
    if configured:
        return hashlib.blake2b(configured.encode(), digest_size=32).digest()
    path = state_dir / "cache.secret"
    if not path.exists():
        state_dir.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        try:
            path.hardlink_to(draft)  # atomic: of two processes that start together, one makes it
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return bytes.fromhex(path.read_text())
