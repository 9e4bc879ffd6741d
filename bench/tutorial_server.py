"""The usual tutorial's server: FastAPI, a plain `def predict`, a transformers pipeline. Measured beside the router.

    python bench/tutorial_server.py MODEL_FOLDER [--per-request]

`--per-request` loads the model in the handler, as many a first version does. Port: any free one; the URL is printed.
"""

from __future__ import annotations

import argparse
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Message(BaseModel):
    text: str


def create_app(model: str, *, per_request: bool = False) -> FastAPI:
    """`model`: a folder, or whatever `pipeline` takes."""
    app = FastAPI()
    classifier: Any = None if per_request else pipeline("text-classification", model=model)

    @app.post("/predict")
    def predict(message: Message) -> dict[str, Any]:
        classify = classifier or pipeline("text-classification", model=model)
        best = classify(message.text)[0]
        return {"label": best["label"], "score": best["score"]}

    return app


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--per-request", action="store_true")
    arguments = parser.parse_args()
    app = create_app(arguments.model, per_request=arguments.per_request)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    # The access log is off, in the tutorial server's favour.
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    main()
