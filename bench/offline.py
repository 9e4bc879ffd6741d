"""The same work without HTTP: what serving is measured against, and what a rival on equal terms runs.

Of each text: tokenize, run the int8 graph, apply the shipped head and its temperature, take the best label. Nothing
else: no queue, no futures, no JSON, no books. Batches are cut from texts sorted by length (the least padding) and take
a graph of their own, exported with a batch dimension and a mask and quantized by the same recipe.

    python bench/offline.py GRAPH

is a child of serving.py: an order a line on stdin ({"batch", "threads", "inside", "seconds", "bare"}), a result a line
on stdout. GRAPH is the batched graph, made by `python bench/offline.py --export GRAPH`.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple, Self

import numpy as np
from rounds import read_texts
from tokenizers import Tokenizer

import local_model
from local_model import encoder as encoders
from local_model.encoder import DEFAULT, Encoder
from local_model.heads import load_head
from local_model.onnx_engine import artifact
from local_model.onnx_graph import has_vnni, open_session, ort, quantize
from router.paths import cache_dir

HEAD = Path(local_model.__file__).parent / "heads" / "banking77"


class Layout(NamedTuple):
    """`threads` runs at once, each of `batch` texts and with `inside` threads of its own."""

    batch: int
    threads: int
    inside: int

    def __str__(self) -> str:
        return f"{self.batch} per forward, {self.threads} x {self.inside} threads"


class Speed(NamedTuple):
    """Of one run: wall and CPU seconds for `texts`; the median time of one forward."""

    texts: int
    seconds: float
    cpu_seconds: float
    p50_ms: float

    @property
    def per_second(self) -> float:
        return self.texts / self.seconds

    @property
    def cpu_ms(self) -> float:
        return self.cpu_seconds * 1000 / self.texts


class Text:
    """The shipped model, one text at a time. Safe from several threads."""

    def __init__(self, inside: int) -> None:
        encoder = default_encoder()
        folder = artifact(encoder, cache_dir(), lambda _: None)[0]
        self.session = open_session(folder / "model.onnx", threads=inside)
        self.tokenizer = Tokenizer.from_file(str(encoder.path / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(encoder.max_tokens)
        self.labelled = labeller(encoder)

    def encode(self, text: str) -> dict[str, Any]:
        return {"input_ids": np.array([self.tokenizer.encode(text).ids], np.int64)}

    def classify(self, text: str) -> tuple[str, float]:
        return self.labelled(self.session.run(None, self.encode(text))[0])[0]


def default_encoder() -> Encoder:
    return encoders.find(DEFAULT)


def labeller(encoder: Encoder) -> Callable[[Any], list[tuple[str, float]]]:
    """Embeddings (n, hidden) to n labels with their calibrated probabilities."""
    head = load_head(HEAD, "onnx-int8", encoder)
    assert head.weight is not None
    weight, bias = head.weight.T / np.float32(head.temperature), head.bias / np.float32(head.temperature)

    def labelled(embeddings: Any) -> list[tuple[str, float]]:
        logits = embeddings @ weight + bias
        best = logits.argmax(axis=1)
        sure = 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)
        return [(head.labels[i], p) for i, p in zip(best.tolist(), sure.tolist(), strict=True)]

    return labelled


def export(graph: Path) -> None:
    """The encoder as an int8 graph that takes batches: input_ids and attention_mask (n, length)."""
    import logging
    import warnings

    import torch

    from local_model.network import build

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    network = build(default_encoder())
    ids = torch.full((2, 16), 5, dtype=torch.long)
    n, length = torch.export.Dim("n", min=1, max=256), torch.export.Dim("length", min=2, max=512)
    whole = graph.with_suffix(".fp32.onnx")
    with torch.no_grad():
        torch.onnx.export(
            network,
            (ids, torch.ones_like(ids)),
            str(whole),
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            output_names=["pooled"],
            dynamic_shapes={"input_ids": {0: n, 1: length}, "attention_mask": {0: n, 1: length}},
            verbose=False,
        )
    quantize(whole, graph, reduce_range=not has_vnni())


class Offline:
    """The child, from its parent's side."""

    def __init__(self, folder: Path) -> None:
        script, self.graph = str(Path(__file__)), folder / "batched.onnx"
        subprocess.run(
            [sys.executable, script, "--export", str(self.graph)], check=True, stdout=subprocess.DEVNULL, timeout=300
        )
        self.process = subprocess.Popen(
            [sys.executable, script, str(self.graph)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=60)

    def run(self, layout: Layout, seconds: float, *, bare: bool = False) -> Speed:
        """`bare`: the forward alone, of texts tokenized before."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({**layout._asdict(), "seconds": seconds, "bare": bare}), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the offline child ended with code {self.process.wait(60)}; its error is above")
        return Speed(*json.loads(answer))


def serve(graph: Path) -> None:
    """Take orders until stdin ends."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the threads are this bench's own
    texts, _ = read_texts()
    singles: dict[int, Text] = {}
    batched: dict[int, ort.InferenceSession] = {}
    encoder = default_encoder()
    labelled = labeller(encoder)
    padding = Tokenizer.from_file(str(encoder.path / "tokenizer.json"))
    padding.enable_padding()
    padding.enable_truncation(encoder.max_tokens)
    for line in sys.stdin:
        order = json.loads(line)
        layout = Layout(order["batch"], order["threads"], order["inside"])
        work: Callable[[Any], int]
        if layout.batch == 1:
            if layout.inside not in singles:
                singles[layout.inside] = Text(layout.inside)
            text = singles[layout.inside]
            if order["bare"]:
                items: Sequence[Any] = [text.encode(each) for each in texts]
                work = lambda ids, text=text: len(text.session.run(None, ids)[0])  # noqa: E731
            else:
                items = texts
                work = lambda each, text=text: bool(text.classify(each))  # noqa: E731
        else:
            if layout.inside not in batched:
                batched[layout.inside] = open_session(graph, threads=layout.inside)
            items = cut(texts, layout.batch)

            def work(batch: Sequence[str], run: Any = batched[layout.inside].run) -> int:
                found = padding.encode_batch_fast(batch)
                ids = {
                    "input_ids": np.array([each.ids for each in found], np.int64),
                    "attention_mask": np.array([each.attention_mask for each in found], np.int64),
                }
                return len(labelled(run(None, ids)[0]))

        measure(items[:20], work, layout.threads, 0.3)
        print(json.dumps(measure(items, work, layout.threads, order["seconds"])), flush=True)


def cut(texts: Sequence[str], batch: int) -> list[list[str]]:
    """Batches of texts of like length, in random order: a run may end anywhere."""
    texts = sorted(texts, key=len)
    batches = [list(texts[at : at + batch]) for at in range(0, len(texts), batch)]
    random.Random(77).shuffle(batches)
    return batches


def measure(items: Sequence[Any], work: Callable[[Any], int], threads: int, seconds: float) -> Speed:
    """Go round the items with that many threads."""
    numbers = count()
    done: list[int] = []
    took: list[float] = []
    begun, used = time.perf_counter(), time.process_time()
    until = begun + seconds

    def run() -> None:
        while (started := time.perf_counter()) < until:
            done.append(work(items[next(numbers) % len(items)]))
            took.append(time.perf_counter() - started)

    if threads == 1:
        run()
    else:
        runners = [Thread(target=run) for _ in range(threads)]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.join()
    ended = time.perf_counter()
    return Speed(sum(done), ended - begun, time.process_time() - used, float(np.median(took)) * 1000)


if __name__ == "__main__":
    if sys.argv[1] == "--export":
        export(Path(sys.argv[2]))
    else:
        serve(Path(sys.argv[1]))
