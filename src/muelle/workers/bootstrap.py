"""Start a worker in a version's own environment: `ENV/bin/python -I bootstrap.py FD PARENT`.

That environment has the model's libraries but not this package. Exactly `muelle` is taken from
where this file lies, and nothing else of the server's environment. A script, never imported.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def lend_package() -> None:
    """Make `import muelle` find the package that this file is part of."""
    folder = Path(__file__).resolve().parents[1]
    spec = importlib.util.spec_from_file_location(
        "muelle", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["muelle"] = package
    spec.loader.exec_module(package)


if __name__ == "__main__":
    lend_package()
    from muelle.workers.child import main

    main()
