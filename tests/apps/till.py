"""A Flask application around a model. For tests."""

import os

from flask import Flask, request

import muelle


def create_app():
    app = Flask(__name__)

    @app.get("/")
    def root():
        return {"till": "open", "pid": os.getpid()}

    @app.post("/score")
    def score():
        answer = muelle.model("flowers").predict(request.json["rows"])
        return {"labels": answer["label"].tolist()}

    @app.get("/raise")
    def fail():
        raise RuntimeError("the till is empty")

    @app.get("/cookies")
    def cookies():
        return "two", 200, [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]

    return app


app = create_app()
number = 3
