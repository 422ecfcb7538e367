"""Muelle serves saved machine-learning models on the owner's own machines.

Not a place for code: importing the package must stay free, so names are found on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "AsyncClient",
    "Client",
    "Model",
    "Signature",
    "TensorSpec",
    "__version__",
    "model",
]

if TYPE_CHECKING:
    from muelle.apps.local import model
    from muelle.client import AsyncClient, Client
    from muelle.core.signature import Signature, TensorSpec
    from muelle.runtimes.interface import Model

_LAZY = {
    "AsyncClient": "muelle.client",
    "Client": "muelle.client",
    "Signature": "muelle.core.signature",
    "TensorSpec": "muelle.core.signature",
    "Model": "muelle.runtimes.interface",
    "model": "muelle.apps.local",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for (PEP 562)."""
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'muelle' has no attribute {name!r}")
