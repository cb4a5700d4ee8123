"""The gateway put together: routes, collaborators, and what runs beside the requests.

The only place in serving/ that builds collaborators. `create_app` wires; the lifespan starts the
background tasks (keys, replicas, inbox, figures) and, at the end, makes the log durable.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from ipaddress import ip_address
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route

from core.auth import KeyCache
from core.errors import InstructLoopError, Unavailable
from core.keyring import ENGINE_DATA, Keyring
from core.redis_client import Batches, Redis, connect, limits_url, redis_url
from core.room import room_of
from core.settings import Settings
from feedback.edge import DirectRoute
from feedback.labeling_routes import router as labeling_router
from feedback.rater_routes import router as rater_router
from feedback.routes import router as feedback_router
from feedback.users_routes import router as users_router
from serving import completions, health, policies, replicas, service
from serving.admission import Admission
from serving.background import cancel_all, kept
from serving.canary_routes import router as canary_router
from serving.edge import OPEN_PATHS, Edge, on_http_error, on_invalid, on_our_error
from serving.feedback_tokens import router as feedback_token_router
from serving.inbox import Inbox
from serving.limit_leases import Leases
from serving.limits import HEADERS as LIMIT_HEADERS
from serving.lineage_routes import router as lineage_router
from serving.loop_view import router as loop_view_router
from serving.page_routes import router as page_router
from serving.relay import Services
from serving.replicas import Replicas
from serving.session_routes import router as session_router
from serving.sessions import Sessions
from serving.upstream import Upstream
from serving.usage import Usage
from serving.usage import router as usage_router

log = logging.getLogger(__name__)
_FIRST_LOOK_SECONDS = 1.0
_EXPOSED = (
    "x-request-id",
    "x-policy-version",
    "x-policy-versions",
    "x-feedback-off",
    "retry-after",
    *(f"x-ratelimit-{what}-{kind}" for what in LIMIT_HEADERS for kind in ("requests", "tokens")),
)


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application."""
    app = FastAPI(
        title="InstructLoop",
        version="1",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
        exception_handlers={
            InstructLoopError: on_our_error,
            HTTPException: on_http_error,
            RequestValidationError: on_invalid,
        },
    )
    app.state.settings = settings
    app.state.keyring = Keyring(settings.secrets)
    app.state.room = room_of(settings.state_dir, settings.room)
    app.state.durability_warnings = [service.UNCHECKED]
    app.state.leaving = False
    direct: dict[str, Route] = {}
    app.add_middleware(
        Edge,
        max_body_bytes=settings.gateway.max_body_bytes,
        body_seconds=settings.gateway.body_seconds,
        direct=direct,
        access_log=settings.gateway.access_log,
    )
    if settings.gateway.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.gateway.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # the clients' libraries add headers of their own
            expose_headers=_EXPOSED,
        )
    _mount(app, settings)
    past = (completions.PlainRoute, DirectRoute)
    plain = (route for route in app.routes if isinstance(route, past))
    direct |= {route.path: route for route in plain}
    return app


def _mount(app: FastAPI, settings: Settings) -> None:
    for router in (
        completions.router,
        service.router,
        feedback_router,
        feedback_token_router,
        usage_router,
        labeling_router,
        rater_router,
        users_router,
        canary_router,
        policies.router,
        lineage_router,
        loop_view_router,
        session_router,
        page_router,
    ):
        app.include_router(router)
    if is_loopback(settings.gateway.host):
        app.include_router(service.metrics_router)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    with suppress(ValueError):
        return ip_address(host).is_loopback
    return host == "localhost"


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(connect(redis_url(settings)))
        app.state.redis = redis
        app.state.batches = Batches(redis)
        stack.push_async_callback(app.state.batches.close)
        app.state.keys = KeyCache(redis)
        app.state.sessions = Sessions(
            redis,
            app.state.keyring,
            app.state.keys,
            seconds=settings.gateway.session_hours * 3600,
            longest=settings.gateway.session_max_days * 86_400,
        )
        services = _services(app)
        app.state.services = services
        stack.push_async_callback(services.upstream.close)
        leases = await _leases(stack, settings, services, redis)
        stack.push_async_callback(leases.close)
        stack.push_async_callback(services.usage.close)
        inbox = asyncio.create_task(services.inbox.run())
        stack.push_async_callback(services.inbox.close, inbox)
        beside = [
            kept(app.state.keys.run),
            kept(leases.run),
            kept(services.usage.run),
            kept(partial(replicas.watch, redis, services.replicas)),
            kept(partial(service.watch_figures, redis)),
            kept(partial(service.watch_durability, redis, app.state)),
            kept(partial(_watch_health, services)),
        ]
        stack.push_async_callback(cancel_all, [asyncio.create_task(task) for task in beside])
        await _first_look(app)
        yield


async def _leases(
    stack: AsyncExitStack, settings: Settings, services: Services, redis: Redis
) -> Leases:
    """The slices of the limits, from a Redis of their own if there is one."""
    if url := limits_url(settings):
        redis = await stack.enter_async_context(connect(url))
    return Leases(redis, services.admission)


async def _watch_health(services: Services) -> None:
    gateway = services.settings
    await health.watch(
        services.upstream,
        services.replicas,
        every=gateway.probe_interval_seconds,
        patience=gateway.probe_timeout_seconds,
    )


def _services(app: FastAPI) -> Services:
    settings: Settings = app.state.settings
    keyring: Keyring = app.state.keyring
    known = Replicas()
    for url in settings.engine.urls:
        known.add_fixed(url)
    return Services(
        settings=settings.gateway,
        keyring=keyring,
        replicas=known,
        upstream=Upstream(partial(keyring.present, ENGINE_DATA)),
        admission=Admission(settings.limits, keyring),
        usage=Usage(app.state.redis, keep_days=settings.limits.usage_days),
        inbox=Inbox(
            redis=app.state.redis,
            keyring=keyring,
            folder=settings.state_dir / "spool",
            max_entries=settings.log.inbox_max_entries,
            spool_max_bytes=settings.log.spool_max_bytes,
            room=app.state.room,
            one_disk=settings.redis_url is None,
        ),
    )


async def _first_look(app: FastAPI) -> None:
    """Give Redis a moment, so that the first request finds the keys; without it, go on."""
    with suppress(Unavailable, TimeoutError):
        async with asyncio.timeout(_FIRST_LOOK_SECONDS):
            await app.state.keys.refresh()
            services: Services = app.state.services
            await replicas.refresh(app.state.redis, services.replicas, now=0.0)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with the two ways to send a key."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        document.setdefault("components", {})["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
        }
        document["security"] = [{"bearer": []}, {"header": []}]
        for path in OPEN_PATHS:
            document["paths"][path]["get"]["security"] = []
        app.openapi_schema = document
    return app.openapi_schema
