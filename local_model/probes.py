"""Texts whose scores are kept with what was built, and compared whenever it is loaded: another processor, or another
version of a library, may round differently, and a head is fitted to the rounding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from local_model.engines import Engine, Kind, Output, together
from local_model.heads import Head
from local_model.tokenize import TextTokenizer

log = logging.getLogger(__name__)

TOKENS = 128  # of the longest probe: a model that reads 8,192 would take seconds over it
#: How far an embedding (of length 1) may lie from where it lay when the model was built: to be silent about, and to be
#: taken for damage. A CPU repeats itself to the bit. Float operations in another order move int8 embeddings by up to
#: 0.10 (measured: the same graph, unfused), because an activation beside the edge of an int8 step falls to the other
#: side. int8 itself lies up to 0.23 from fp32, unrelated texts lie 1.4 apart.
STEADY, BROKEN = 0.01, 0.5
#: The largest change of a head's probability to be silent about; those 0.10 of the embedding are 0.05 here.
SILENT: dict[Kind, float] = {"torch-fp32": 1e-3, "onnx-int8": 1e-2}
SILENT_ELSE = 5e-2  # bf16 and the 8-bit formats of a GPU

TEXTS = (
    "ok",
    "No.",
    "Why?",
    "where is my parcel",
    "My card was declined at the supermarket this morning.",
    "I can't log in any more, it says that my password is wrong!",
    "Please cancel order 4471-B and send the money back.",
    "the film was long, loud and not very good",
    "What a lovely evening that was, thank you all so much.",
    "Invoice 2026/0913: 1,250.00 EUR, due 30.09.2026, IBAN DE00 1234 5678",
    "3 x 4 = 12; 7 / 2 = 3.5; 10^6 > 999,999",
    "0",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "!!! ??? ... --- ((())) [[]] {} <> \\ / | ~",
    "http://example.org/a/b?c=d&e=f#g and someone@example.org",
    "def add(a, b):\n    return a + b",
    '{"id": 17, "tags": ["new", "urgent"], "ok": false}',
    "SELECT name FROM users WHERE id = 5;",
    "tab\tseparated\tvalues\nand a second line\n\nand a fourth",
    "Wo bleibt meine Bestellung? Ich warte schon seit zwei Wochen darauf.",
    "¿Dónde puedo cambiar mi contraseña?",
    "Je voudrais résilier mon abonnement, s'il vous plaît.",
    "Где моя посылка?",
    "我的银行卡丢了，怎么办？",
    "注文した商品がまだ届きません。",
    "متى يصل طلبي؟",
    "मेरा खाता क्यों बंद है?",
    "😀👍🏽🎉 love it!!! ❤️",
    "It isn't that I dislike it; it's just that nobody asked me whether I wanted it in the first place.",
    "The delegates agreed on Tuesday to meet again in spring, although two of the smaller states had asked for a vote.",
    "She said yes. He said no. They said maybe. We said nothing. I said goodbye. You said hello.",
    "The pump runs, then it stops, then it runs again, and nobody here can tell me what is wrong with it. " * 12,
)


def token_ids(tokenizer: TextTokenizer) -> list[list[int]]:
    """The probes as token ids, cut to TOKENS: 32 rows."""
    return [_cut(tokenizer.encode(text, truncate=True).ids) for text in TEXTS]


def _cut(ids: list[int]) -> list[int]:
    return ids if len(ids) <= TOKENS else [*ids[: TOKENS - 1], ids[-1]]


def run(engine: Engine, rows: Sequence[Sequence[int]]) -> Output:
    """The engine's output for `rows`, in their order, in batches of rows of like length."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    step = max(1, min(engine.max_items, engine.max_tokens // TOKENS))
    parts = [engine.forward([rows[i] for i in order[at : at + step]]) for at in range(0, len(order), step)]
    back, whole = np.argsort(order), together(parts)
    return Output(whole.embeddings[back], None if whole.logits is None else whole.logits[back])


def rate(engine: Engine, rows: Sequence[Sequence[int]], rounds: int = 8) -> float:
    """Texts per second in full batches of the shorter half of `rows`, after a round to warm up."""
    short = sorted(rows, key=len)[: len(rows) // 2]
    batch = [short[i % len(short)] for i in range(min(engine.max_items, engine.max_tokens // len(short[-1])))]
    engine.forward(batch)
    started = time.perf_counter()
    for _ in range(rounds):
        engine.forward(batch)
    return rounds * len(batch) / (time.perf_counter() - started)


def save(file: Path, rows: Sequence[Sequence[int]], output: Output) -> None:
    """Keep the probes' token ids (so that a load needs no tokenizer) and embeddings."""
    ids = [np.array(row, np.int64) for row in rows]
    lengths = np.array([len(row) for row in ids], np.int64)
    save_file({"ids": np.concatenate(ids), "lengths": lengths, "embeddings": output.embeddings}, file)


def load(file: Path) -> tuple[list[list[int]], NDArray[np.float32]]:
    """What `save` kept: token ids, and embeddings (32, hidden). Raises OSError, SafetensorError, KeyError."""
    kept = load_file(file)
    rows = np.split(kept["ids"], np.cumsum(kept["lengths"])[:-1])
    return [row.tolist() for row in rows], kept["embeddings"]


def distance(now: NDArray[np.float32], then: NDArray[np.float32]) -> float:
    """The largest Euclidean distance of a row from itself; infinite if shapes differ or a value is not finite."""
    if now.shape != then.shape or not np.isfinite(now).all():
        return float("inf")
    return float(np.linalg.norm(now - then, axis=1).max())


def check(name: str, head: Head, kind: Kind, output: Output) -> tuple[str, ...]:
    """Notes (and a warning in the log) if `head` does not answer the probes as where it was fitted.

    `output`: `run(engine, token_ids(tokenizer))`, once for all heads on that engine. `name`: the task, for the note.
    Nothing is said of a head that keeps no probe scores (made before there were any, or a model's own).
    """
    if head.probes is None:
        return ()
    now = head.probabilities(output)
    fits = now.shape == head.probes.shape and bool(np.isfinite(now).all())
    off = float(np.abs(now - head.probes).max()) if fits else float("inf")
    if off <= SILENT.get(kind, SILENT_ELSE):
        return ()
    note = (
        f"{name}: the head's probabilities of the probe texts differ by up to {off:.3f} from where it was fitted: this "
        f"processor, or a library's version, rounds differently on {kind}, so its confidences may be off; "
        "run `crossover learn` here"
    )
    log.warning("%s", note)
    return (note,)
