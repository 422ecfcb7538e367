"""The store: versions that never change, labels that move, in a folder with an SQLite database."""

from muelle.repository.store.references import Reference
from muelle.repository.store.reports import GcReport, Problem, VerifyReport, VersionRow
from muelle.repository.store.store import Store, default_store

__all__ = [
    "GcReport",
    "Problem",
    "Reference",
    "Store",
    "VerifyReport",
    "VersionRow",
    "default_store",
]
