"""What is read of a text, how much, and how fast too much is refused."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_model import encoder, tokenize
from local_model.tokenize import TextTokenizer
from local_model.types import LoadError, OverLength

CLS, SEP = 101, 102


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return tokenize.load(encoder.find(), tmp_path_factory.mktemp("none"))


def test_ids_are_those_of_the_transformers_tokenizer(tokens: TextTokenizer) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(encoder.find().path)
    for text in ("", "Where's my card?", "naïve  Ünïcode\n\ttext", "一二三", "a" * 300, "money " * 100):
        assert tokens.encode(text, truncate=False).ids == reference(text)["input_ids"]


def test_nothing_is_cut_or_padded_in_silence(tokens: TextTokenizer) -> None:
    assert len(tokens.encode("money " * 200, truncate=False).ids) == 202
    assert len(tokens.encode("money", truncate=False).ids) == 3
    with pytest.raises(OverLength) as error:
        tokens.encode("money " * 255, truncate=False)
    assert (error.value.tokens, error.value.limit) == (257, 256)


def test_a_cut_text_keeps_its_special_tokens_and_says_so(tokens: TextTokenizer) -> None:
    cut = tokens.encode("money " * 999, truncate=True)
    assert cut.truncated
    assert len(cut.ids) == 256
    assert (cut.ids[0], cut.ids[-1]) == (CLS, SEP)
    fits = tokens.encode("money " * 254, truncate=True)
    assert not fits.truncated
    assert fits.ids == cut.ids


def test_a_document_of_100_000_words_is_refused_without_looking(
    tokens: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = _characters(tokens, monkeypatch)
    with pytest.raises(OverLength, match="about"):
        tokens.encode("money " * 100_000, truncate=False)
    assert looked_at == []


def _characters(tokens: TextTokenizer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The length of each string that is tokenized from now on."""
    lengths: list[int] = []
    real = TextTokenizer._encode

    def counted(self: TextTokenizer, text: str) -> Any:
        lengths.append(len(text))
        return real(self, text)

    monkeypatch.setattr(TextTokenizer, "_encode", counted)
    return lengths


def _refused(tokens: TextTokenizer, text: str) -> OverLength:
    with pytest.raises(OverLength) as error:
        tokens.encode(text, truncate=False)
    return error.value


@pytest.mark.parametrize("piece", ["my card has not arrived yet. ", "一", ".", "naïve ", "internationalization "])
@pytest.mark.parametrize("truncate", [True, False])
def test_of_a_long_text_only_the_beginning_is_tokenized(
    tokens: TextTokenizer, piece: str, truncate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on the event loop: 64,000 characters took 25 to 120 ms."""
    text = (piece * 64_000)[:64_000]
    lengths = _characters(tokens, monkeypatch)
    if truncate:
        assert len(tokens.encode(text, truncate=True).ids) == 256
    else:
        _refused(tokens, text)
    assert lengths in ([256 * 8], [256 * 8, 256 * 32])
    assert len(lengths) == 1 or piece == "internationalization ", "21 characters a token"


@pytest.mark.parametrize("piece", [" ", "x", "😀", "e\u0301", "\u200d", "x" * 150 + " "])
def test_of_a_cut_text_no_more_is_read_than_32_characters_a_token(
    tokens: TextTokenizer, piece: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is made of: here of almost no tokens, so that no beginning fills the model."""
    text = piece * 100_000
    lengths = _characters(tokens, monkeypatch)
    cut = tokens.encode(text, truncate=True)
    assert cut.truncated
    assert lengths == [256 * 8, 256 * 32]
    assert cut.ids == tokens.encode(text[: 256 * 32], truncate=False).ids


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=24), min_size=1),
    separator=st.sampled_from([" ", "  ", "\n", ", ", "-", ""]),
    extra=st.integers(0, 10_000),
)
def test_the_tokens_kept_of_a_cut_text_are_the_first_of_the_whole_text(
    tokens: TextTokenizer, words: list[str], separator: str, extra: int
) -> None:
    """For texts whose words are not longer than a few dozen characters."""
    once = separator.join([*words, "card "])
    text = once * ((2_000 + extra) // len(once) + 1)
    whole = tokens._tokenizer.encode(text).ids
    wanted = whole if len(whole) <= 256 else [*whole[:255], SEP]
    if len(whole) <= 256 and len(text) > 256 * 32:  # the bound: 32 characters a token
        return
    found = tokens.encode(text, truncate=True)
    assert found.ids == wanted
    assert found.truncated == (len(whole) > 256)


def test_of_a_text_that_is_not_tokenized_whole_the_tokens_are_estimated(tokens: TextTokenizer) -> None:
    text = "Where is my card? I ordered it two weeks ago. " * 300
    whole = len(tokens._tokenizer.encode(text).ids)
    assert tokens.encode(text, truncate=True).tokens == pytest.approx(whole, rel=0.05)
    refused = _refused(tokens, text)
    assert refused.tokens == pytest.approx(whole, rel=0.05)
    assert "about" in str(refused)
    assert tokens.encode("money " * 300, truncate=True).tokens == 302, "a text of ordinary length is counted"


def test_an_error_names_no_text(tokens: TextTokenizer) -> None:
    with pytest.raises(UnicodeError) as error:
        tokens.encode("secret \ud800", truncate=False)
    assert "secret" not in repr(error.value)
    assert error.value.__cause__ is None


def test_many_threads_may_tokenize_at_once(tokens: TextTokenizer) -> None:
    texts = [f"text number {n} " * (n % 9 + 1) for n in range(200)]
    alone = [tokens.encode(text, truncate=True).ids for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert [found.ids for found in pool.map(lambda text: tokens.encode(text, truncate=True), texts)] == alone


def test_a_model_with_only_a_vocabulary_gets_its_tokenizer_made_once(
    tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_model("bert")
    before = tokenize.load(encoder.find(str(folder)), tmp_path)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "film"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    made = tokenize.load(encoder.find(str(folder)), tmp_path)
    assert made.encode("Good film", truncate=False).ids == [2, 5, 6, 3]
    assert len(list((tmp_path / "tokenizers").iterdir())) == 1
    assert before.max_tokens == made.max_tokens


# --- finding the model


def test_the_default_encoder_is_the_published_one() -> None:
    found = encoder.find()
    assert (found.hidden, found.max_tokens, found.limit, found.pooling) == (384, 256, 512, "mean")
    assert found.labels is None


def test_a_model_of_another_content_has_another_digest(
    tiny_model: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    folder = tiny_model("bert")
    digest = encoder.find(str(folder)).digest
    assert encoder.find(str(folder)).digest == digest
    edit_json(folder / "config.json", hidden_dropout_prob=0.2)
    assert encoder.find(str(folder)).digest != digest


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_that_lacks_a_file_is_refused_by_its_name(tiny_model: Callable[..., Path], gone: str) -> None:
    folder = tiny_model("bert")
    (folder / gone).unlink()
    with pytest.raises(LoadError, match=gone.replace("model.safe", "safe")):
        encoder.find(str(folder))


def test_pickled_weights_are_never_loaded(tiny_model: Callable[..., Path]) -> None:
    folder = tiny_model("bert")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(LoadError, match="pickled"):
        encoder.find(str(folder))


def test_labels_that_do_not_number_the_outputs_are_refused(
    tiny_model: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    folder = tiny_model("bert")
    for bad in ({"0": "a", "2": "b"}, {"0": "a", "1": "a"}, {"0": "only"}):
        edit_json(folder / "config.json", id2label=bad)
        with pytest.raises(LoadError, match=r"config\.json"):
            encoder.find(str(folder))


def test_positions_that_start_late_are_not_counted_as_tokens(
    tiny_model: Callable[..., Path], edit_json: Callable[..., None]
) -> None:
    folder = tiny_model("bert")
    assert encoder.find(str(folder)).max_tokens == 40
    edit_json(folder / "config.json", model_type="roberta", pad_token_id=1)
    assert encoder.find(str(folder)).max_tokens == 38


@pytest.mark.parametrize("source", ["no-such-model", "./no/such/folder", "/nowhere"])
def test_a_source_that_is_nothing_is_refused(source: str) -> None:
    with pytest.raises(LoadError, match="neither"):
        encoder.find(source)


def test_a_hub_model_that_can_not_be_had_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    def offline(*args: object, **kwargs: object) -> str:
        from huggingface_hub.errors import LocalEntryNotFoundError

        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(LoadError, match="give a folder"):
        encoder.find("someone/some-model@abc123")


def test_a_hub_model_is_fetched_at_its_revision_and_only_its_safe_files(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Callable[..., Path]
) -> None:
    import huggingface_hub

    asked: dict[str, object] = {}
    folder = tiny_model("bert")

    def snapshot(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    pinned = encoder.find("someone/some-model@abc123")
    assert (asked["name"], asked["revision"], pinned.notes) == ("someone/some-model", "abc123", ())
    assert not any(str(pattern).endswith((".bin", ".py", ".pt", "*")) for pattern in asked["allow_patterns"])  # type: ignore[attr-defined]
    assert "no pinned revision" in encoder.find("someone/some-model").notes[0]
