"""A Flask application for the tests, made by a factory."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, make_response, redirect, request

import muelle


def create_app() -> Flask:
    """Return the application."""
    app = Flask(__name__)
    iris = muelle.model("iris")

    @app.post("/predict")
    def predict() -> dict[str, Any]:
        found = iris.predict(request.get_json())
        return {"outputs": {k: v.tolist() for k, v in found.outputs.items()}}

    @app.get("/boom")
    def boom() -> str:
        raise ValueError("the secret is 42")

    @app.post("/echo")
    def echo() -> Response:
        return Response(request.get_data(), content_type=request.content_type)

    @app.get("/slow")
    def slow() -> str:
        time.sleep(float(request.args["seconds"]))
        return "done"

    @app.post("/form")
    def form() -> dict[str, Any]:
        file = request.files["file"]
        return {"who": request.form["who"], "name": file.filename, "size": len(file.read())}

    @app.get("/cookies")
    def cookies() -> Response:
        response = make_response(dict(request.cookies))
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    @app.get("/old")
    def old() -> Any:
        return redirect("/new")

    @app.get("/stream")
    def stream() -> Response:
        def parts() -> Iterator[str]:
            for number in range(5):
                yield f"{number};"

        return Response(parts())

    @app.get("/about/<path:rest>")
    def about(rest: str) -> dict[str, Any]:
        return {
            "rest": rest,
            "query": request.query_string.decode(),
            "script": request.script_root,
            "remote": request.remote_addr,
            "pid": os.getpid(),
            "user": request.headers.get("x-user"),
        }

    return app
