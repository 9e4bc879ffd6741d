"""LitServe, in two ways. Measured beside the router.

    python bench/litserve_server.py docs MODEL_FOLDER
    python bench/litserve_server.py onnx [--workers N] [--batch N] [--fast-queue]

`docs`: as LitServe's documentation and its own BERT benchmark have it: a transformers model in bfloat16, `batch` and
`unbatch`, batches of 32 that are waited for 5 ms (research: the best of the sizes tried), one worker a device.
`onnx`: on equal terms: the int8 graph, the tokenizer and the head that the router serves, one text per forward, all
cores in use. Port: any free one; the URL is printed.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class TransformersAPI(litserve.LitAPI):
    """Batches in bfloat16."""

    def __init__(self, folder: str) -> None:
        super().__init__(max_batch_size=32, batch_timeout=0.005)
        self.folder = folder

    def setup(self, device: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        model = AutoModelForSequenceClassification.from_pretrained(self.folder, dtype=torch.bfloat16)
        self.model = model.to(device).eval()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def batch(self, inputs: list[str]) -> Any:
        return self.tokenizer(inputs, return_tensors="pt", padding=True, truncation=True)

    def predict(self, inputs: Any) -> Any:
        import torch

        with torch.inference_mode():
            return torch.softmax(self.model(**inputs.to(self.device)).logits.float(), dim=-1).max(dim=-1)

    def unbatch(self, output: Any) -> list[tuple[float, int]]:
        return list(zip(output.values.tolist(), output.indices.tolist(), strict=True))

    def encode_response(self, output: tuple[float, int]) -> dict[str, Any]:
        return {"label": self.model.config.id2label[output[1]], "score": output[0]}


class OnnxAPI(litserve.LitAPI):
    """The router's session and head. With several workers each keeps to one core; a single one uses them all: inside
    the forward, or (in batches) by as many threads as there are cores, each with texts of its own.
    """

    def __init__(self, workers: int, batch: int) -> None:
        super().__init__(max_batch_size=batch, batch_timeout=0.002 if batch > 1 else 0.0)
        self.inside = CORES if workers == 1 and batch == 1 else 1
        self.beside = CORES if workers == 1 and batch > 1 else 1

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        import offline

        self.text = offline.Text(self.inside)
        self.pool = ThreadPoolExecutor(self.beside)

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, inputs: str | Sequence[str]) -> Any:
        if isinstance(inputs, str):
            return self.text.classify(inputs)
        return list(self.pool.map(self.text.classify, inputs))

    def encode_response(self, output: tuple[str, float]) -> dict[str, Any]:
        return {"label": output[0], "score": output[1]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mode", choices=["docs", "onnx"])
    parser.add_argument("model", nargs="?", default="")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--fast-queue", action="store_true")
    asked = parser.parse_args()
    api = TransformersAPI(asked.model) if asked.mode == "docs" else OnnxAPI(asked.workers, asked.batch)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=asked.workers, fast_queue=asked.fast_queue, timeout=60
    )
    with socket.socket() as found:  # LitServe wants a number, and opens the port itself
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    server.run(host="127.0.0.1", port=port, log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
