"""What tritonserver and PyTriton need on disk and around them. Not for starting them.

Source: "Triton model repository" and "python backend" of the Triton documentation.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
from pathlib import Path

from bench.models import Array, BenchModel
from bench.peers import DATATYPES, HERE

MODEL_FILE = HERE / "grpc" / "triton_model.py"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def write_repository(folder: Path, model: BenchModel) -> Path:
    """Write a repository with this one model, served by the Python backend. Return its folder."""
    shutil.rmtree(folder, ignore_errors=True)
    version = folder / model.name / "1"
    version.mkdir(parents=True)
    shutil.copy(MODEL_FILE, version / "model.py")
    (folder / model.name / "config.pbtxt").write_text(config_of(model))
    return folder


def config_of(model: BenchModel) -> str:
    """Return the model's config.pbtxt: batches as large as Muelle's, formed without waiting."""
    inputs = [_tensor("input", name, values) for name, values in model.inputs.items()]
    lines = [
        f'name: "{model.name}"',
        'backend: "python"',
        f"max_batch_size: {model.max_batch_size}",
        *inputs,
        _tensor("output", model.output, model.expected),
        "instance_group [{ count: 1 kind: KIND_CPU }]",
        "dynamic_batching { }",
        f'parameters {{ key: "onnx" value: {{ string_value: "{model.path}" }} }}',
    ]
    return "\n".join(lines) + "\n"


def _tensor(kind: str, name: str, values: Array) -> str:
    datatype = f"TYPE_{DATATYPES[values.dtype.name]}"
    dims = list(values.shape[1:])
    return f'{kind} [{{ name: "{name}" data_type: {datatype} dims: {dims} }}]'


def write_backends(folder: Path, packages: Path) -> Path:
    """Put the Python backend together: PyTriton's wheel has one stub for each Python. Return it."""
    triton = packages / "pytriton" / "tritonserver"
    shutil.rmtree(folder, ignore_errors=True)
    backend = folder / "python"
    backend.mkdir(parents=True)
    for file in (triton / "backends" / "python").iterdir():
        if file.is_file():
            (backend / file.name).symlink_to(file)
    stub = "triton_python_backend_stub"
    # Copied: the backend looks for its stub beside the file that a link leads to.
    shutil.copy(triton / "python_backend_stubs" / PYTHON / stub, backend / stub)
    return folder


def surroundings(packages: Path) -> dict[str, str]:
    """Return the environment variables both servers run with: one thread, the right libraries.

    The stub loads the first libpython that it finds, which must be that of the packages' Python.
    """
    libraries = [sysconfig.get_config_var("LIBDIR"), str(packages / "nvidia_pytriton.libs")]
    return {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PYTHONPATH": str(packages),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
    }


def packages_of(python: Path) -> Path:
    """Return the site-packages folder of an environment's interpreter."""
    return python.parents[1] / "lib" / f"python{PYTHON}" / "site-packages"
