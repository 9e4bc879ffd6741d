"""An endpoint that does nothing, in two ways. Measured beside the router's cache hits.

    python bench/native_server.py litestar | raw

`litestar`: a native route of the router's own framework, msgspec Struct in, Struct out. `raw`: no framework, the body
is sent back. Both on one uvicorn worker, uvloop and httptools, access log off. Port: any free one; the URL is printed.
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, post


class Question(msgspec.Struct):
    input: str


class Answer(msgspec.Struct):
    label: str
    confidence: float


@post("/v1/classify", status_code=200)
async def classify(data: Question) -> Answer:
    return Answer("card_arrival" if data.input else "", 0.97)


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Raw ASGI: whatever the path."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    app: Any = {"litestar": lambda: Litestar([classify], logging_config=None), "raw": lambda: echo}[sys.argv[1]]()
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(
        app, loop="uvloop", http="httptools", lifespan="off", log_level="warning", access_log=False, ws="none"
    )
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
