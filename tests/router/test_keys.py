"""The cache's identity."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.cache import keys
from router.cache.entry import Corrupt, Entry, decode, encode

SECRET = b"s" * 32
PARTS = st.lists(st.text(max_size=8), max_size=5)


@given(PARTS, PARTS)
def test_two_lists_of_parts_have_one_digest_only_if_they_are_the_same(one: list[str], other: list[str]) -> None:
    """("a|b", "c") and ("a", "b|c") differ: lengths are part of what is hashed."""
    assert (keys.digest(SECRET, one) == keys.digest(SECRET, other)) == (one == other)


@given(st.text())
def test_normalizing_twice_changes_nothing(text: str) -> None:
    """So that what was stored under a normalized text is found again."""
    assert keys.normalize(keys.normalize(text)) == keys.normalize(text)


def test_composed_and_decomposed_letters_are_one_text() -> None:
    """NFC, and no white space around it; case and inner space stay."""
    assert keys.normalize(" cafe\u0301\n") == "caf\u00e9"
    assert keys.normalize("Card  Lost") == "Card  Lost"


@given(st.text(), st.text(max_size=5), st.text(max_size=5))
def test_tenants_never_share_a_digest(text: str, one: str, other: str) -> None:
    """The same text of another tenant is another text."""
    same = keys.text_digest(SECRET, one, text) == keys.text_digest(SECRET, other, text)
    assert same == (one == other)


def test_without_the_secret_a_digest_says_nothing() -> None:
    """Another secret, another digest: short texts can't be guessed from what stands in Redis."""
    assert keys.text_digest(SECRET, "t", "yes") != keys.text_digest(b"x" * 32, "t", "yes")


@pytest.mark.parametrize("part", range(5))
def test_every_part_of_the_key_matters(part: int) -> None:
    """Tenant, task, generation, text, identity: changing any one changes the key."""
    parts = ["tenant", "task", "generation", b"\x01" * 16, "identity"]
    changed = [*parts]
    changed[part] = b"\x02" * 16 if part == 3 else "other"
    assert keys.entry_key(*parts) != keys.entry_key(*changed)


def test_the_secret_is_made_once_even_by_threads_that_start_together(tmp_path: Path) -> None:
    """And is readable by its owner only."""
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(keys.load_secret("", tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert (tmp_path / "cache.secret").stat().st_mode & 0o777 == 0o600


ENTRY = Entry("k", "local", 1.0, "a", 0.9, (("a", 0.9), ("b", 0.1)), "m", 5, 7, False)


def test_an_entry_comes_back_as_it_was_stored() -> None:
    """Every field."""
    assert decode(encode(ENTRY, SECRET), "k", "local", {"a", "b"}, SECRET) == ENTRY


@given(st.binary(max_size=200))
def test_bytes_that_are_no_entry_are_corrupt_and_nothing_worse(data: bytes) -> None:
    """Redis is not trusted."""
    with pytest.raises(Corrupt):
        decode(data, "k", None, {"a"}, SECRET)


@given(st.integers(0, len(encode(ENTRY, SECRET)) - 1), st.integers(1, 255))
def test_a_changed_byte_anywhere_is_corrupt(place: int, change: int) -> None:
    """The seal covers everything: a flipped bit of a confidence is no answer either."""
    data = bytearray(encode(ENTRY, SECRET))
    data[place] ^= change
    with pytest.raises(Corrupt):
        decode(bytes(data), "k", "local", {"a", "b"}, SECRET)


def test_an_entry_sealed_with_another_secret_is_corrupt() -> None:
    """Who can write to Redis but does not know the secret writes misses."""
    with pytest.raises(Corrupt):
        decode(encode(ENTRY, b"x" * 32), "k", "local", {"a", "b"}, SECRET)


def test_a_long_run_of_combining_marks_is_not_composed_but_kept() -> None:
    """Composing it takes time quadratic in its length: 200 KB of them would stop the service for seconds."""
    evil = "a" + "\u0301" * 100_000 + "\u0323" * 100_000
    assert keys.normalize(f" {evil} ") == evil
    assert keys.normalize("e" + "\u0301" * 30).startswith("\u00e9")
    assert keys.normalize("e" + "\u0301" * 31) == "e" + "\u0301" * 31


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("key", "other"),
        ("kind", "frontier"),
        ("label", "z"),
        ("confidence", float("nan")),
        ("confidence", 1.5),
        ("scores", (("z", 0.1),)),
    ],
)
def test_what_does_not_belong_is_corrupt(field: str, value: object) -> None:
    """Another's key, a label that the task lost, a number that is no probability."""
    import msgspec

    with pytest.raises(Corrupt):
        decode(encode(msgspec.structs.replace(ENTRY, **{field: value}), SECRET), "k", "local", {"a", "b"}, SECRET)
