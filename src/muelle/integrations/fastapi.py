"""Muelle's endpoints in a FastAPI application that is served elsewhere (uvicorn, gunicorn, …).

    app.include_router(router("fraud.onnx"), prefix="/ml")

Not for applications that Muelle serves itself: those use `muelle.model`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from muelle import __version__
from muelle.api.app import new_routes
from muelle.api.openapi import describe
from muelle.client.local import ServedModel
from muelle.integrations.embedded import Embedded, settings_of

MARK = "muelle-models"
"""Name of an operation by which the host's own document tells where our routes are."""


class MuelleRouter(APIRouter):
    """The router, and the way to the models for the application's own endpoints."""

    def __init__(self, embedded: Embedded) -> None:
        self.embedded = embedded
        super().__init__(lifespan=self._lifespan)
        self.routes.extend(new_routes(embedded.doors()))
        self.add_api_route("/models", _mark, methods=["GET"], operation_id=MARK)

    def model(self, name: str, version: str | int | None = None) -> ServedModel:
        """Return one of the models: `await router.model("fraud").predict_async(rows)`."""
        return self.embedded.model(name, version)

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        await self.embedded.start()
        try:
            # What a model takes and gives is known once it is loaded: then the docs get it.
            app.openapi = _merged(app, self.embedded)  # type: ignore[method-assign]
            yield
        finally:
            await self.embedded.stop()


def router(*models: str, **settings: Any) -> MuelleRouter:
    """Return a router with the endpoints of these models (`PATH`, `NAME=PATH`), or of a store's.

    `settings` are those of `muelle serve`, by their short names: `trust=True`, `workers=2`,
    `store="/srv/store"`, `select="fraud@stable"`, `max_batch_size=64`. Models are loaded when the
    application starts, and their workers end with it. Raise ConfigError for a wrong setting.
    """
    return MuelleRouter(Embedded(settings_of(models, settings)))


def _merged(app: FastAPI, embedded: Embedded) -> Callable[[], dict[str, Any]]:
    """Return `app.openapi` with our paths and schemas in it, below the prefix of our routes."""
    theirs = app.openapi
    doors = embedded.doors()

    def openapi() -> dict[str, Any]:
        document: dict[str, Any] = json.loads(json.dumps(theirs()))
        prefix = _prefix(document)
        ours: dict[str, Any] = describe(doors.models(), __version__, doors.json_nan)
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        ours = _renamed(ours, set(schemas))
        for kind, members in ours.get("components", {}).items():
            document["components"].setdefault(kind, {}).update(members)
        for path, item in ours.get("paths", {}).items():
            if path.startswith(("/models", "/v2")):
                document["paths"][prefix + path] = item
        return document

    return openapi


def _renamed(ours: dict[str, Any], taken: set[str]) -> dict[str, Any]:
    """Give our schemas other names where the application has some of the same."""
    text = json.dumps(ours)
    for name in taken & set(ours.get("components", {}).get("schemas", {})):
        text = text.replace(
            f'"#/components/schemas/{name}"', f'"#/components/schemas/Muelle{name}"'
        )
        document = json.loads(text)
        document["components"]["schemas"][f"Muelle{name}"] = document["components"]["schemas"].pop(
            name
        )
        text = json.dumps(document)
    found: dict[str, Any] = json.loads(text)
    return found


def _prefix(document: dict[str, Any]) -> str:
    """Take our mark out of the document; return the prefix under which the router was included."""
    for path, item in list(document["paths"].items()):
        if item.get("get", {}).get("operationId") == MARK:
            del document["paths"][path]
            return str(path).removesuffix("/models")
    return ""


def _mark() -> None:
    """Never called: the route before it answers."""
