"""What makes two requests the same: `co:{version}:{tenant}:{task}:{generation}:{text digest}:{identity digest}`.

Digests are keyed BLAKE2b over length-prefixed parts: no two lists of parts encode alike, and whoever reads Redis can't
test guesses of short texts without the secret. Everything that changes an answer is a part of its identity; what is
applied on read (the policy) is not, so that a new threshold drops no paid answer.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

#: Version of key and entry layout; a new one leaves old entries to expire.
VERSION = "1"
#: Version of `normalize`.
NORMALIZATION = "nfc-strip-2"
#: Composing takes time quadratic in the length of a run of combining marks. Unicode's Stream-Safe format (UAX 15)
#: allows 30; a text with a longer run is left as it is.
LONGEST_RUN = 30

#: Every process that remembers answers asks for the generations of its tasks this often, in seconds...
POLL_S = 0.25
#: ...serves what it remembers for so long after it asked...
TRUST_S = 1.0
#: ...and is forgotten by the others if it was silent for that long.
CORPSE_S = 5.0


def normalize(text: str) -> str:
    """NFC, without white space around it. The model is shown exactly this: what the key drops, nobody sees."""
    if text.isascii() or too_many_marks(text):
        return text.strip()
    return unicodedata.normalize("NFC", text).strip()


def too_many_marks(text: str) -> bool:
    """Whether more than `LONGEST_RUN` combining marks follow each other. A run that long holds one of every so many
    characters: only those are looked at, and the neighbours of a mark. (A pattern takes 0.2 s for a megabyte.)"""
    combining = unicodedata.combining
    for at in range(LONGEST_RUN, len(text), LONGEST_RUN + 1):
        if combining(text[at]):
            first = last = at
            while first > at - LONGEST_RUN and combining(text[first - 1]):
                first -= 1
            while last - first < LONGEST_RUN and last + 1 < len(text) and combining(text[last + 1]):
                last += 1
            if last - first >= LONGEST_RUN:
                return True
    return False


def digest(secret: bytes, parts: Iterable[str], size: int = 16) -> bytes:
    """Keyed BLAKE2b of `parts`, each prefixed with its length; `size` bytes."""
    state = hashlib.blake2b(digest_size=size, key=secret)
    for part in parts:
        state.update(_prefixed(part))
    return state.digest()


def text_digest(secret: bytes, tenant: str, text: str) -> bytes:
    """Of a normalized text: 16 bytes; another tenant's digest of the same text is another."""
    state = _begun(secret, NORMALIZATION, tenant).copy()
    state.update(_prefixed(text))
    return state.digest()


@lru_cache(maxsize=1024)
def _begun(secret: bytes, *parts: str) -> hashlib.blake2b:
    """What all texts of a tenant have in common: half of the work."""
    state = hashlib.blake2b(digest_size=16, key=secret)
    for part in parts:
        state.update(_prefixed(part))
    return state


def _prefixed(part: str) -> bytes:
    data = part.encode("utf-8", "surrogatepass")
    return len(data).to_bytes(8, "little") + data


def identity_digest(secret: bytes, parts: Iterable[str]) -> str:
    """Of an `identity`: 16 hex digits."""
    return digest(secret, parts, 8).hex()


def entry_key(tenant: str, task: str, generation: str, text: bytes, identity: str) -> str:
    """Names of tenants and tasks hold no colon (router.config.Name), so the parts can be told apart."""
    return f"co:{VERSION}:{tenant}:{task}:{generation}:{text.hex()}:{identity}"


def claim_key(entry: str) -> str:
    """Who is buying that entry right now."""
    return f"{entry}:claim"


def generation_key(task: str) -> str:
    """Its value: `TOKEN`, a part of the entries' keys, or `TOKEN.N` after N partial purges."""
    return f"co:{VERSION}:generation:{task}"


def replicas_key() -> str:
    """A hash: replica id -> JSON `{"at": unix ms, "seen": {task: the generation's value}}`."""
    return f"co:{VERSION}:replicas"


def identity_key(digest: str) -> str:
    """Its value: the parts of that identity, JSON."""
    return f"co:{VERSION}:identity:{digest}"


def current_key(task: str) -> str:
    """Its value: the digests of the identities that the task's requests have now, JSON."""
    return f"co:{VERSION}:current:{task}"


def probe_key() -> str:
    """Read and written to see whether Redis works."""
    return f"co:{VERSION}:probe"


def new_generation() -> str:
    return secrets.token_hex(4)


def token_of(generation: str) -> str:
    return generation.partition(".")[0]


def is_generation(value: str) -> bool:
    """Whatever else stands under a generation's key is not ours."""
    return re.fullmatch(r"[0-9a-f]{8}(\.[0-9]{1,18})?", value) is not None


def generation_in(reply: object) -> str:
    """A generation's value as Redis gave it; "" for none, and for what is none of ours."""
    value = reply.decode("ascii", "replace") if isinstance(reply, bytes) else ""
    return value if is_generation(value) else ""


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
