"""Small real models, made here: nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORDS = [
    "good",
    "bad",
    "great",
    "awful",
    "film",
    "plot",
    "was",
    "the",
    "a",
    "very",
    "not",
    "and",
    "card",
    "money",
    "lost",
    "i",
    "my",
    "where",
    "is",
]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where int8 models are built, once for all tests: as on a user's machine."""
    return tmp_path_factory.mktemp("model-cache")


def _tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def tiny_model(tmp_path: Path) -> Callable[..., Path]:
    """`tiny_model(kind, **config)`: a random bert, distilbert, roberta, xlm-roberta, modernbert or deberta."""

    def make(kind: str = "bert", *, classifier: bool = True, **config: Any) -> Path:
        import torch
        import transformers

        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        torch.manual_seed(3)
        shared = {"vocab_size": len(WORDS) + 4, "max_position_embeddings": 40, "initializer_range": 0.4, **config}
        bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, **shared}
        relative = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
        name, settings = {
            "bert": ("Bert", bert),
            "distilbert": ("DistilBert", {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, **shared}),
            "roberta": ("Roberta", bert),
            "xlm-roberta": ("XLMRoberta", bert),
            "modernbert": ("ModernBert", {**bert, "pad_token_id": 0, "local_attention": 6}),
            "deberta": ("DebertaV2", {**bert, "initializer_range": 0.1, **relative}),
        }[kind]
        cls: Any = getattr(transformers, f"{name}ForSequenceClassification" if classifier else f"{name}Model")
        made = getattr(transformers, f"{name}Config")(**settings)
        cls(made).save_pretrained(folder)
        _tokenizer(folder)
        return folder

    return make


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """`edit_json(file, key=value)`: change keys of a JSON file."""

    def edit(file: Path, **changes: Any) -> None:
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return edit
