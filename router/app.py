"""The Litestar application: routes, errors, lifespan. What requests need is built in `router.service`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

from litestar import Litestar
from litestar.openapi.config import OpenAPIConfig

from router.config_file import Loaded
from router.http.cache import cache_router
from router.http.classify import classify_handler
from router.http.errors import handle
from router.http.openapi import DocumentWithClassify
from router.http.ops import answers, ops_router
from router.service import Service
from router.siblings import ALONE, Place, Siblings


def create_app(
    loaded: Loaded, *, on_fatal: Callable[[str], None] = lambda _reason: None, place: Place = ALONE
) -> Litestar:
    """`app.state.service` is the `Service`; `on_fatal(reason)` is called when it can never answer; `app.state.failure`
    is why it could not be opened, if so. `place`: which of several workers this is; of several, each starts only once
    its model is warm, so that no caller meets one that can't answer while others can."""
    service = Service(loaded, on_fatal=on_fatal, place=place)
    siblings = Siblings(place, answers(service))

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            try:
                await service.open()
                stack.push_async_callback(service.close)
                await stack.enter_async_context(siblings)
                if place.of > 1:
                    await service.wait_until_ready()
            except Exception as error:
                app.state.failure = error  # the server only says that there was one
                raise
            yield

    app = Litestar(
        route_handlers=[classify_handler(service), ops_router(service, siblings), cache_router(service)],
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
        # Not to be had through the environment: LITESTAR_DEBUG shows stack traces, LITESTAR_PDB stops at exceptions.
        debug=False,
        pdb_on_exception=False,
    )
    app.state.service = service
    return app
