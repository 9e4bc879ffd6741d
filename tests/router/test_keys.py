"""The cache's identity."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local_model.types import TaskInfo
from providers.prompt import prompt_digest
from providers.types import Label
from router import wiring
from router.cache import keys
from router.cache.entry import Corrupt, Entry, decode, encode
from router.config import Config, Example, Task

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


# mutations: whichever part of the identity is left out, two requests that differ get one name -------------------------

LOCAL_PARTS = ("labels", "encoder", "tokenizer", "engine", "head", "temperature", "max_tokens", "multi_label")
REQUEST: dict[str, Any] = {
    "secret": SECRET,
    "tenant": "tenant",
    "task": "task",
    "generation": "12345678",
    "text": "text",
    "digest": b"\x01" * 16,
    "identity": "0123456789abcdef",
    "normalization": "nfc-1",
    "kind": "local",
    "names": ("a", "b"),
    "description": "what a means",
    "instructions": "be brief",
    "example": "an a",
    "chain": "p/m > q/n",
    **{name: f"{name} 1" for name in LOCAL_PARTS},
}


def changed(part: str) -> dict[str, Any]:
    other: dict[str, Any] = {"secret": b"x" * 32, "digest": b"\x02" * 16, "names": ("a", "c"), "kind": "frontier"}
    return {**REQUEST, part: other.get(part, "another")}


def route(it: dict[str, Any]) -> Any:
    """As the service makes it, on a model that says of itself what `it` says."""
    labels, parts = it["names"], tuple(f"{name}={it[name]}" for name in LOCAL_PARTS)
    info = TaskInfo(
        name="t", labels=labels, descriptions={}, model="m", identity=parts, max_tokens=9, multi_label=False
    )
    task = Task(
        instructions=it["instructions"],
        descriptions={"a": it["description"]},
        examples=(Example(text=it["example"], label="a"),),
    )
    model: Any = SimpleNamespace(task=lambda _: info)
    return wiring.task_route("t", Config(tasks={"t": task}), model, it["secret"], it["chain"], 1.0)


def text_digest(it: dict[str, Any]) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys, "NORMALIZATION", it["normalization"])
        return keys.text_digest(it["secret"], it["tenant"], it["text"])


#: What a name is made by, and all that it must tell apart.
NAMES: dict[str, tuple[Callable[[dict[str, Any]], Any], tuple[str, ...]]] = {
    "the text's digest": (text_digest, ("secret", "tenant", "text", "normalization")),
    "the key": (
        lambda it: keys.entry_key(it["tenant"], it["task"], it["generation"], it["digest"], it["identity"]),
        ("tenant", "task", "generation", "digest", "identity"),
    ),
    "an identity": (lambda it: wiring.identity(it["secret"], it["kind"], {"part": "x"}), ("secret", "kind")),
    "the local identity": (lambda it: route(it).local_identity, ("secret", *LOCAL_PARTS)),
    "the frontier's identity": (
        lambda it: route(it).frontier_identity,
        ("secret", "names", "description", "instructions", "example", "chain"),
    ),
}


def confused(name: str) -> list[str]:
    """The parts that a name does not tell apart. Must be empty."""
    made, parts = NAMES[name]
    return [part for part in parts if made(changed(part)) == made(REQUEST)]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_tells_every_part_apart(name: str) -> None:
    """Of the digest, of the key, of either identity."""
    assert confused(name) == []


def blind(function: Callable[..., Any], place: int, constant: Any) -> Callable[..., Any]:
    """`function`, to which the argument at `place` is always the same."""
    return lambda *arguments, **more: function(
        *[constant if i == place else a for i, a in enumerate(arguments)], **more
    )


def without(part: str) -> Callable[..., Any]:
    real = wiring.identity
    return lambda secret, kind, parts: real(secret, kind, {name: text for name, text in parts.items() if name != part})


def undescribed(labels: Any, instructions: str, examples: Any) -> str:
    from providers.prompt import make

    return make(tuple(Label(label.name) for label in labels), instructions, examples).digest


def unversioned(secret: bytes, *parts: str, real: Any = keys._begun) -> Any:
    return real(secret, *parts[1:])


MUTANTS: list[tuple[str, str, str, Any]] = [
    *[("the text's digest", part, "router.cache.keys.text_digest", blind(keys.text_digest, i, constant))
      for i, (part, constant) in enumerate([("secret", SECRET), ("tenant", ""), ("text", "")])],
    ("the text's digest", "normalization", "router.cache.keys._begun", unversioned),
    *[("the key", part, "router.cache.keys.entry_key", blind(keys.entry_key, i, b"" if part == "digest" else ""))
      for i, part in enumerate(NAMES["the key"][1])],
    ("an identity", "secret", "router.cache.keys.identity_digest", blind(keys.identity_digest, 0, SECRET)),
    ("an identity", "kind", "router.wiring.identity", blind(wiring.identity, 1, "")),
    ("the local identity", "secret", "router.wiring.identity", blind(wiring.identity, 0, SECRET)),
    *[("the local identity", part, "router.wiring.identity", without(part)) for part in LOCAL_PARTS],
    ("the frontier's identity", "secret", "router.wiring.identity", blind(wiring.identity, 0, SECRET)),
    ("the frontier's identity", "names", "router.wiring.identity", without("prompt and labels")),
    ("the frontier's identity", "description", "providers.prompt.prompt_digest", undescribed),
    ("the frontier's identity", "instructions", "providers.prompt.prompt_digest", blind(prompt_digest, 1, "")),
    ("the frontier's identity", "example", "providers.prompt.prompt_digest", blind(prompt_digest, 2, ())),
    ("the frontier's identity", "chain", "router.wiring.identity", without("providers")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "part", "where", "mutant"), MUTANTS, ids=[f"{m[0]}: {m[1]}" for m in MUTANTS])
def test_leaving_out_any_part_is_found(
    name: str, part: str, where: str, mutant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The property above fails for every mutant, and names the part."""
    monkeypatch.setattr(where, mutant)
    assert part in confused(name)


def test_no_part_is_without_its_mutant() -> None:
    assert {(name, part) for name, part, _, _ in MUTANTS} == {(n, p) for n, (_, parts) in NAMES.items() for p in parts}
