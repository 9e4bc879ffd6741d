"""The torch module that every engine runs or exports: token ids in; a pooled, L2-normalised embedding and logits out.

The only place that imports transformers. Imported when it is needed: torch takes a second to import.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import AttentionInterface, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.utils import logging as transformers_logging

from local_model.encoder import Encoder
from local_model.types import LoadError

log = logging.getLogger(__name__)


class Network(torch.nn.Module):
    """`forward(input_ids (n, length), attention_mask (n, length) or None)`: embedding (n, hidden) fp32, and for a
    sequence classifier logits (n, labels) fp32. No mask means that nothing is padding.
    """

    def __init__(self, model: torch.nn.Module, pooling: str, classifies: bool) -> None:
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.classifies = classifies

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        if self.classifies:
            out = self.model(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            return self._pool(out.hidden_states[-1], attention_mask), out.logits.float()
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (self._pool(hidden, attention_mask),)

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        hidden = hidden.float()
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        elif mask is None:
            pooled = hidden.mean(dim=1)
        else:
            weight = mask.unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * weight).sum(dim=1) / weight.sum(dim=1)
        return torch.nn.functional.normalize(pooled, dim=-1)


def build(encoder: Encoder, dtype: torch.dtype = torch.float32) -> Network:
    """Load the weights, on the CPU, ready for inference. Raises LoadError if they do not fit the architecture."""
    classifies = encoder.labels is not None
    auto = AutoModelForSequenceClassification if classifies else AutoModel
    try:
        with _quiet_transformers():
            model, info = auto.from_pretrained(
                str(encoder.path),
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=dtype,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise LoadError(f"{encoder.path}: transformers can't load this model: {error}") from error
    # A weight that is not in the file would be drawn at random: a classifier that answers nonsense with confidence.
    # Poolers are not read here, and some encoders are published without.
    missing = sorted(key for key in info["missing_keys"] if "pooler" not in key or classifies)
    if missing or info["mismatched_keys"]:
        what = ", ".join(missing[:5]) or str(sorted(info["mismatched_keys"])[:5])
        raise LoadError(f"{encoder.path}: the weights do not fit the architecture in config.json ({what})")
    return Network(cast("Any", model), encoder.pooling, classifies).eval().requires_grad_(False)


def run(network: Network, rows: Sequence[Sequence[int]]) -> tuple[NDArray[np.float32], ...]:
    """Each row of token ids by itself: embeddings (n, hidden), and logits (n, labels) of a classifier."""
    with torch.inference_mode():
        parts = [network(torch.tensor([list(row)])) for row in rows]
    return tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True))


@contextlib.contextmanager
def one_text(network: Network) -> Iterator[None]:
    """While it is exported for one unpadded text, attention is written without what only padding needs.

    The exporter's own form of it masks, looks for rows that were masked whole, and turns the keys round by way of their
    shape: a tenth of a short text's time, for the same bits. Models with an attention of their own keep it.
    """
    model = cast("Any", network.model)
    before = model.config._attn_implementation
    if before != "sdpa":
        yield
        return
    AttentionInterface.register("one_text", _attend)
    AttentionMaskInterface.register("one_text", _mask)
    model.set_attn_implementation("one_text")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _mask(**asked: Any) -> torch.Tensor | None:
    """No mask where each token sees all others; a sliding window keeps its own."""
    everything = asked.get("allow_is_bidirectional_skip") and asked.get("local_size") is None
    return None if everything and asked.get("attention_mask") is None else sdpa_mask(**asked)


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """softmax((q sqrt(s)) (k sqrt(s))^T) v, the order of the exporter's form; (n, heads, length, size) each."""
    grouped = key.shape[1] != query.shape[1]
    if grouped or getattr(module, "is_causal", False) or others.get("position_bias") is not None:
        answer: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return answer
    root = float((query.shape[-1] ** -0.5 if scaling is None else scaling) ** 0.5)
    scores = (query * root) @ (key.transpose(-1, -2) * root)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, float("-inf"))
    return (torch.softmax(scores, -1) @ value).transpose(1, 2).contiguous(), None


def fast_tokenizer(encoder: Encoder) -> Tokenizer:
    """The tokenizer of a model that has a vocabulary and no tokenizer.json. Raises LoadError."""
    try:
        made = AutoTokenizer.from_pretrained(str(encoder.path), local_files_only=True, trust_remote_code=False)
        backend: Tokenizer = made.backend_tokenizer
    except (OSError, ValueError, ImportError, AttributeError) as error:
        raise LoadError(
            f"{encoder.path} has no tokenizer.json, and none could be made of its other files: {error}"
        ) from error
    return backend


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars and load reports from the library: what is wrong is raised, the rest is noise."""
    library: Any = transformers_logging  # its functions carry no types
    before = library.get_verbosity()
    bars = library.is_progress_bar_enabled()
    library.set_verbosity_error()
    library.disable_progress_bar()
    try:
        yield
    finally:
        library.set_verbosity(before)
        if bars:
            library.enable_progress_bar()
