"""The torch module that every engine runs or exports: token ids in; a pooled, L2-normalised embedding and logits out.

The only place that loads a transformers model. Imported by engines when they need it: torch takes a second to import.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, cast

import torch
from transformers import AutoModel, AutoModelForSequenceClassification
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
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if self.classifies:
            out = self.model(input_ids=input_ids, attention_mask=mask, output_hidden_states=True)
            return self._pool(out.hidden_states[-1], attention_mask), out.logits.float()
        return (self._pool(self.model(input_ids=input_ids, attention_mask=mask).last_hidden_state, attention_mask),)

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
