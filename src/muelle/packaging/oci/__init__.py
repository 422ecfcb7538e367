"""Container images without a daemon and without root: layers, bases, layouts, archives.

Not for engines that build (`docker build`), and not for deciding what an image holds.
"""

from muelle.packaging.oci.images import Base, find_python, names, read_base, save_from_engine
from muelle.packaging.oci.layers import Entry, Layer, Link, folder_entries, write_layer
from muelle.packaging.oci.layout import (
    ImageName,
    Platform,
    host_platform,
    parse_name,
    parse_platform,
)
from muelle.packaging.oci.plan import Healthcheck, ImageConfig
from muelle.packaging.oci.push import Pushed, attach, push
from muelle.packaging.oci.verify import Verified, verify_layout
from muelle.packaging.oci.write import Written, write_image

__all__ = [
    "Base",
    "Entry",
    "Healthcheck",
    "ImageConfig",
    "ImageName",
    "Layer",
    "Link",
    "Platform",
    "Pushed",
    "Verified",
    "Written",
    "attach",
    "find_python",
    "folder_entries",
    "host_platform",
    "names",
    "parse_name",
    "parse_platform",
    "push",
    "read_base",
    "save_from_engine",
    "verify_layout",
    "write_image",
    "write_layer",
]
