"""Muelle's endpoints inside other people's applications: `fastapi.router`, `flask.blueprint`."""
