"""The ASGI app: every endpoint that is not a hot prediction, and predictions that came this way.

Importing this imports FastAPI (half a second): do it late. Handlers only fetch and wrap; what is
answered is decided in `answers`, `openapi` and `page`. No forms, no multipart, no ranges; nothing
is decided by the URL that a client claims.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from muelle.api import answers, page
from muelle.api.doors import ApiDoors
from muelle.api.errors import error_encoder, is_v2
from muelle.api.openapi import describe
from muelle.api.streams import PipedResponse
from muelle.core.errors import MethodNotAllowed, MuelleError, RouteNotFound
from muelle.core.ids import is_request_id, new_request_id
from muelle.protocols.http import Answer, HttpRequest, StreamedAnswer
from muelle.telemetry.exposition import CONTENT_TYPE

__all__ = ["ApiDoors", "build_app"]

log = logging.getLogger("muelle.api")

GENERATE_PATHS = tuple(
    f"/v2/models/{{name}}{version}/{last}"
    for version in ("", "/versions/{version}")
    for last in ("generate", "generate_stream")
)

Endpoint: TypeAlias = Callable[[Request], Awaitable[Response]]
Question: TypeAlias = Callable[[Request], Answer]


def build_app(doors: ApiDoors) -> FastAPI:
    """Return the app. It keeps no state of its own but the doors."""
    app = FastAPI(
        title=doors.server_name,
        version=doors.server_version,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers={HTTPException: _refused},
    )
    # Plain routes: FastAPI's own would check and copy every answer through response models.
    app.router.routes.extend([*new_routes(doors), *_page_routes(doors)])
    app.openapi = lambda: describe(doors.models(), doors.server_version, doors.json_nan)  # type: ignore[method-assign]
    return app


def new_routes(doors: ApiDoors) -> list[Route]:
    """Return the routes of probes and protocols, which also work below a prefix of another app."""
    questions = [*_health(doors), *_native(doors), *_v2(doors)]
    routes = [Route(path, _asked(question, path), methods=["GET"]) for path, question in questions]
    for path in (
        "/models/{name}/predict",
        "/models/{name}/versions/{version}/predict",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
        *GENERATE_PATHS,
    ):
        routes.append(Route(path, _predicted(doors, path), methods=["POST"]))
    return routes


def _page_routes(doors: ApiDoors) -> list[Route]:
    questions = _pages(doors)
    return [Route(path, _asked(question, path), methods=["GET"]) for path, question in questions]


def _health(doors: ApiDoors) -> list[tuple[str, Question]]:
    def live(request: Request) -> Answer:
        return answers.live(doors.live())

    def ready(request: Request) -> Answer:
        return answers.ready(*doors.ready(), failing=503)

    def metrics(request: Request) -> Answer:
        return Answer(200, CONTENT_TYPE, doors.metrics())

    return [
        *((path, live) for path in ("/live", "/livez", "/healthz")),
        *((path, ready) for path in ("/ready", "/readyz")),
        ("/metrics", metrics),
    ]


def _native(doors: ApiDoors) -> list[tuple[str, Question]]:
    def models(request: Request) -> Answer:
        return answers.models(doors.models())

    def model(request: Request) -> Answer:
        return answers.model(doors.model(request.path_params["name"]))

    def version(request: Request) -> Answer:
        params = request.path_params
        return answers.version(doors.model(params["name"]), params["version"])

    def example(request: Request) -> Answer:
        params = request.path_params
        protocol = request.query_params.get("protocol", "native")
        return answers.example(doors.model(params["name"]), params.get("version"), protocol)

    return [
        ("/models", models),
        ("/models/{name}", model),
        ("/models/{name}/example", example),
        ("/models/{name}/versions/{version}", version),
        ("/models/{name}/versions/{version}/example", example),
    ]


def _v2(doors: ApiDoors) -> list[tuple[str, Question]]:
    def server(request: Request) -> Answer:
        return answers.v2_server(doors.server_name, doors.server_version)

    def live(request: Request) -> Answer:
        return answers.live(doors.live())

    def ready(request: Request) -> Answer:
        return answers.ready(*doors.ready(), failing=400)

    def models(request: Request) -> Answer:
        return answers.v2_models(doors.models())

    def model(request: Request) -> Answer:
        params = request.path_params
        return answers.v2_model(doors.model(params["name"]), params.get("version"))

    def model_ready(request: Request) -> Answer:
        params = request.path_params
        return answers.v2_model_ready(doors.model(params["name"]), params.get("version"))

    return [
        ("/v2", server),
        ("/v2/health/live", live),
        ("/v2/health/ready", ready),
        ("/v2/models", models),
        ("/v2/models/{name}", model),
        ("/v2/models/{name}/ready", model_ready),
        ("/v2/models/{name}/versions/{version}", model),
        ("/v2/models/{name}/versions/{version}/ready", model_ready),
    ]


def _pages(doors: ApiDoors) -> list[tuple[str, Question]]:
    assets = page.assets()

    def root(request: Request) -> Answer:
        # Relative, so that it also works behind a proxy that adds a prefix.
        return Answer(307, b"text/plain", b"see docs\n", ((b"Location", b"docs"),))

    def openapi(request: Request) -> Answer:
        return answers.json_answer(describe(doors.models(), doors.server_version, doors.json_nan))

    def docs(request: Request) -> Answer:
        language = page.choose_language(
            request.query_params.get("lang", ""), request.headers.get("accept-language", "")
        )
        html = page.render(doors.models(), doors.ready(), doors.server_version, language)
        return Answer(200, b"text/html; charset=utf-8", html, page.HEADERS)

    def asset(request: Request) -> Answer:
        found = assets.get(request.path_params["name"])
        if found is None:
            raise RouteNotFound("no such file")
        return found

    return [
        ("/", root),
        ("/openapi.json", openapi),
        ("/docs", docs),
        ("/docs/assets/{name}", asset),
    ]


def _asked(question: Question, path: str) -> Endpoint:
    """Wrap a question that is answered at once. The path says in which protocol errors are told."""

    async def endpoint(request: Request) -> Response:
        request_id = _request_id(request)
        try:
            answer = question(request)
        except Exception as exc:
            answer = _failed(path, exc, request_id)
        return _response(answer, request_id)

    return endpoint


def _predicted(doors: ApiDoors, path: str) -> Endpoint:
    """Wrap the predictions of all protocols: the body goes on as it came.

    The path is made anew from what it names, for there may be a prefix before it.
    """

    async def endpoint(request: Request) -> Response:
        request_id = _request_id(request)
        try:
            answer = await doors.answer(
                HttpRequest(
                    request.method.encode(),
                    path.format(**request.path_params),
                    request.scope["query_string"],
                    _joined(request.scope["headers"]),
                    await request.body(),
                    request_id,
                )
            )
        except Exception as exc:
            answer = _failed(path, exc, request_id)
        return _response(answer, request_id)

    return endpoint


async def _refused(request: Request, exc: Exception) -> Response:
    """Answer what no route took: 404, or 405 with what the path allows."""
    request_id = _request_id(request)
    assert isinstance(exc, HTTPException)
    allowed = (exc.headers or {}).get("Allow", "")
    if exc.status_code == 405 and request.method == "OPTIONS":
        answer = Answer(204, b"", b"", ((b"Allow", f"{allowed}, OPTIONS".encode()),))
        return _response(answer, request_id)
    path = request.scope["path"]
    error: MuelleError
    if exc.status_code == 405:
        text = "Method Not Allowed" if is_v2(path) else f"this path takes {allowed}"
        error = MethodNotAllowed(text)
    else:
        text = "Not Found" if is_v2(path) else "no such path; GET /docs shows what there is"
        error = RouteNotFound(text)
    answer = error_encoder(path)(error, request_id)
    if allowed:
        answer.headers = (*answer.headers, (b"Allow", f"{allowed}, OPTIONS".encode()))
    return _response(answer, request_id)


def _failed(path: str, error: Exception, request_id: str) -> Answer:
    if not isinstance(error, MuelleError):
        log.error("request failed", exc_info=error, extra={"request_id": request_id})
    return error_encoder(path)(error, request_id)


def _response(answer: Answer, request_id: str) -> Response:
    response: Response
    if isinstance(answer, StreamedAnswer):
        response = PipedResponse(answer)
    else:
        response = Response(answer.body, answer.status)
    raw = [(name.lower(), value) for name, value in answer.all_headers()]
    if answer.content_type:
        raw.append((b"content-type", answer.content_type))
    if isinstance(answer, StreamedAnswer):
        if answer.length is not None:
            raw.append((b"content-length", b"%d" % answer.length))
    elif answer.status != 204:
        raw.append((b"content-length", b"%d" % len(answer.body)))
    if not any(name == b"x-content-type-options" for name, _ in raw):
        raw.append((b"x-content-type-options", b"nosniff"))
    raw.append((b"x-request-id", request_id.encode()))
    response.raw_headers = raw
    return response


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    return given if is_request_id(given) else new_request_id()


def _joined(pairs: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers
