"""The Litestar application: routes, errors, lifespan. What requests need is built in `router.service`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from litestar import Litestar
from litestar.openapi.config import OpenAPIConfig

from router.config_file import Loaded
from router.http.classify import classify_handler
from router.http.errors import handle
from router.http.openapi import DocumentWithClassify
from router.http.ops import ops_router
from router.service import Service


def create_app(loaded: Loaded, *, on_fatal: Callable[[str], None] = lambda _reason: None) -> Litestar:
    """`app.state.service` is the `Service`; `on_fatal(reason)` is called when it can never answer; `app.state.failure`
    is why it could not be opened, if so."""
    service = Service(loaded, on_fatal=on_fatal)

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        try:
            await service.open()
        except Exception as error:
            app.state.failure = error  # the server only says that there was one
            raise
        try:
            yield
        finally:
            await service.close()

    app = Litestar(
        route_handlers=[classify_handler(service), ops_router(service)],
        lifespan=[lifespan],
        exception_handlers={Exception: handle},
        openapi_config=OpenAPIConfig(
            title="Crossover",
            version="0.1.0",
            summary="Hybrid classification router",
            path="/schema",
            render_plugins=[DocumentWithClassify()],
        ),
        # Litestar's own request logging writes bodies and cookies; ours is in router.http.classify.
        logging_config=None,
        debug=False,
    )
    app.state.service = service
    return app
