"""Clients of a running server, sync and async: predictions and management, the same codecs.

Not for serving. Importing this imports httpx and NumPy.
"""

from muelle.client.aio import AsyncClient
from muelle.client.calls import Prediction, ServerUnreachable
from muelle.client.sync import Client

__all__ = ["AsyncClient", "Client", "Prediction", "ServerUnreachable"]
