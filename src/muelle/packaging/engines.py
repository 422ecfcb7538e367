"""Ask a container engine to build, load, save, push: Docker's API, Podman's, Buildah's program.

Whatever is asked, no image is fetched and no step has a network. Not for what an image holds.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from muelle.core.errors import ArtifactError, ConfigError, Unavailable
from muelle.packaging.dockerfile import STAMP
from muelle.packaging.images import LAYER_TIME
from muelle.packaging.oci import ImageName
from muelle.packaging.targets import Target
from muelle.runtimes.libraries import library

Lines = Callable[[str], None]
NAMES = ("docker", "podman", "buildah")
_CONNECT_S = 5
_TALK_S = 900


@dataclass(frozen=True, slots=True)
class EngineImage:
    """An image as an engine knows it. Size in bytes, with its base."""

    id: str
    architecture: str
    size: int
    env: tuple[str, ...] = ()
    """Its variables, as `NAME=value`."""

    @property
    def python(self) -> str:
        """The version of Python that it says it has (`3.11`), "" when it does not."""
        for line in self.env:
            name, _, value = line.partition("=")
            if name == "PYTHON_VERSION":
                return ".".join(value.split(".")[:2])
        return ""


class Engine(Protocol):
    """What a builder must be able to do. Every call may block for long; errors are MuelleErrors."""

    name: str

    def find(self, image: str) -> EngineImage | None:
        """Return an image that is in the engine, None when it is not. Nothing is fetched."""

    def build(self, context: Path, target: Target, lines: Lines) -> EngineImage:
        """Build a folder with a Dockerfile; the image has no name yet. Raise ArtifactError."""

    def name_it(self, image: EngineImage, name: ImageName) -> None:
        """Give an image its name."""

    def load(self, archive: Path, name: str) -> None:
        """Take in an archive of one image under that name."""

    def save(self, image: str, archive: Path) -> None:
        """Write an image as an archive (`docker save`)."""

    def push(self, name: ImageName, *, insecure: bool, lines: Lines) -> None:
        """Send an image to its registry."""


def find_engine(asked: str, env: Mapping[str, str]) -> Engine | None:
    """Return the engine that was asked for; with `auto` the first that answers, else None.

    Raise Unavailable when the one that was asked for does not answer.
    """
    if asked not in (*NAMES, "auto"):
        raise ConfigError(f"--builder {asked!r}: known are auto, {', '.join(NAMES)} and oci")
    problems = []
    for name in NAMES if asked == "auto" else (asked,):
        try:
            return DockerEngine(env) if name == "docker" else ProgramEngine(name)
        except Unavailable as exc:
            problems.append(exc.message)
    if asked == "auto":
        return None
    raise Unavailable(problems[0])


class DockerEngine:
    """The Docker Engine API, at DOCKER_HOST or its usual socket. Podman's service speaks it too."""

    name = "docker"

    def __init__(self, env: Mapping[str, str]) -> None:
        """Raise Unavailable when no engine answers."""
        self._docker = library("docker", "build")
        where = env.get("DOCKER_HOST", "")
        try:
            quick = self._docker.DockerClient.from_env(
                environment=dict(env), version="auto", timeout=_CONNECT_S
            )
            quick.ping()
            quick.close()
            self._client = self._docker.DockerClient.from_env(
                environment=dict(env), version="auto", timeout=_TALK_S
            )
        except Exception as exc:
            # The library raises its own errors, requests' and urllib3's for the same trouble.
            raise Unavailable(
                f"no Docker engine answers at {where or 'its usual socket'}: {_short(exc)}; start "
                "it, name it in DOCKER_HOST, or build without one: --builder oci"
            ) from None
        self._api: Any = self._client.api

    def find(self, image: str) -> EngineImage | None:
        """Inspect it."""
        try:
            found = self._api.inspect_image(image)
        except self._docker.errors.ImageNotFound:
            return None
        except self._docker.errors.APIError as exc:
            raise ArtifactError(f"docker: {image}: {_short(exc)}") from None
        env = tuple((found.get("Config") or {}).get("Env") or ())
        size = int(found.get("Size", 0))
        return EngineImage(found["Id"], found.get("Architecture", ""), size, env)

    def build(self, context: Path, target: Target, lines: Lines) -> EngineImage:
        """Stream the folder to the engine; no step has a network."""
        image, told = "", ""
        stream = _Stream(context)
        try:
            for event in self._api.build(
                fileobj=stream, custom_context=True, encoding=None, decode=True, rm=True,
                forcerm=True, pull=False, network_mode="none", platform=target.platform,
            ):  # fmt: skip
                text = str(event.get("stream") or event.get("status") or "").strip()
                if text:
                    lines(text)
                    told = text
                image = str(event.get("aux", {}).get("ID", image))
                if "error" in event:
                    raise ArtifactError(f"docker cannot build it: {_one_line(event['error'])}")
        except ArtifactError:
            self._clean()
            raise
        except Exception as exc:
            self._clean()
            raise ArtifactError(f"docker ended while it built: {_short(exc)}") from None
        finally:
            stream.close()
        found = self.find(image) if image else None
        if found is None:
            raise ArtifactError(f"docker did not say which image it built; its last word: {told}")
        return found

    def _clean(self) -> None:
        """Take away what a build that failed has left."""
        try:
            self._api.prune_images(filters={"dangling": True, "label": [STAMP]})
        except Exception:
            pass  # The engine is gone: there is nobody to clean up.

    def name_it(self, image: EngineImage, name: ImageName) -> None:
        """Tag it."""
        repository = _repository(name)
        self._checked(lambda: self._api.tag(image.id, repository, name.tag))

    def load(self, archive: Path, name: str) -> None:
        """`docker load`."""
        with open(archive, "rb") as stream:
            for event in self._checked(lambda: list(self._client.api.load_image(stream))):
                if isinstance(event, dict) and "error" in event:
                    raise ArtifactError(f"docker cannot load it: {_one_line(event['error'])}")
        if self.find(name) is None:
            raise ArtifactError(f"docker has loaded {archive.name}, but knows no {name}")

    def save(self, image: str, archive: Path) -> None:
        """`docker save`."""

        def write() -> None:
            with open(archive, "wb") as target:
                for block in self._api.get_image(image):
                    target.write(block)

        self._checked(write)

    def push(self, name: ImageName, *, insecure: bool, lines: Lines) -> None:
        """`docker push`. Which registries may be spoken to without TLS, the engine decides."""
        repository = _repository(name)
        for event in self._checked(
            lambda: self._api.push(repository, tag=name.tag, stream=True, decode=True)
        ):
            if "error" in event:
                raise ArtifactError(f"docker cannot push {name}: {_one_line(event['error'])}")
            if status := event.get("status"):
                lines(str(status))

    def _checked(self, do: Callable[[], Any]) -> Any:
        try:
            return do()
        except OSError as exc:
            raise ArtifactError(f"docker: {_short(exc)}") from None
        except Exception as exc:
            raise ArtifactError(f"docker: {_short(exc)}") from None


class ProgramEngine:
    """Podman or Buildah, by its program."""

    def __init__(self, name: str) -> None:
        """Raise Unavailable when the program is not there."""
        self.name = name
        path = shutil.which(name)
        if path is None:
            raise Unavailable(
                f"{name} is not installed; install it, or build without an engine: --builder oci"
            )
        self._program = path

    def find(self, image: str) -> EngineImage | None:
        """Inspect it."""
        import msgspec

        what = ["image", "inspect"] if self.name == "podman" else ["inspect", "--type", "image"]
        done = self._run([*what, image], check=False)
        if done.returncode:
            return None
        found = msgspec.json.decode(done.stdout)
        if self.name == "podman":
            one = found[0]
            env = tuple((one.get("Config") or {}).get("Env") or ())
            size = int(one.get("Size", 0))
            return EngineImage(one["Id"], one.get("Architecture", ""), size, env)
        oci = found.get("OCIv1", {})
        env = tuple((oci.get("config") or {}).get("Env") or ())
        # Buildah tells sizes to people only, rounded: 0 stands for not known.
        return EngineImage(found["FromImageID"], oci.get("architecture", ""), 0, env)

    def build(self, context: Path, target: Target, lines: Lines) -> EngineImage:
        """Build with the program; no step has a network and nothing is fetched."""
        told: list[str] = []
        image_file = context.with_name(f"{context.name}.id")
        command = [
            self._program, "build", "--network", "none", "--pull=never", "--format", "docker",
            "--timestamp", str(LAYER_TIME), "--platform", target.platform, "--layers", "--force-rm",
            "--iidfile", str(image_file), "--file", str(context / "Dockerfile"), str(context),
        ]  # fmt: skip
        try:
            with subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, errors="replace",
            ) as process:  # fmt: skip
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip():
                        told.append(line.strip())
                        lines(line.strip())
            if process.returncode:
                raise ArtifactError(f"{self.name} cannot build it: {_last_error(told)}")
            image = image_file.read_text().strip()
        finally:
            image_file.unlink(missing_ok=True)
        found = self.find(image)
        return found or EngineImage(image, target.architecture, 0)

    def name_it(self, image: EngineImage, name: ImageName) -> None:
        """Tag it."""
        self._run(["tag", image.id, str(name)])

    def load(self, archive: Path, name: str) -> None:
        """Take in an archive."""
        if self.name == "podman":
            self._run(["load", "--input", str(archive)])
        else:
            self._run(["pull", "--policy", "always", f"docker-archive:{archive}"])
        if self.find(name) is None:
            raise ArtifactError(f"{self.name} has loaded {archive.name}, but knows no {name}")

    def save(self, image: str, archive: Path) -> None:
        """Write an archive."""
        if self.name == "podman":
            self._run(["save", "--format", "docker-archive", "--output", str(archive), image])
        else:
            self._run(["push", image, f"docker-archive:{archive}"])

    def push(self, name: ImageName, *, insecure: bool, lines: Lines) -> None:
        """Send it; TLS is left out only when that was asked for."""
        self._run(["push", f"--tls-verify={'false' if insecure else 'true'}", str(name)])

    def _run(
        self, arguments: Sequence[str], *, check: bool = True
    ) -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(
            [self._program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if check and done.returncode:
            told = done.stderr.decode("utf-8", "replace").splitlines()
            raise ArtifactError(f"{self.name} {arguments[0]}: {_last_error(told)}")
        return done


def _repository(name: ImageName) -> str:
    """Return an image's name without its tag."""
    return str(name).removesuffix(f":{name.tag}")


class _Stream:
    """A folder as a tar stream, packed by a thread while the engine reads. Times are fixed."""

    def __init__(self, folder: Path) -> None:
        read, write = os.pipe()
        self._read = os.fdopen(read, "rb")
        self._thread = threading.Thread(target=self._pack, args=(folder, write), daemon=True)
        self._thread.start()

    def _pack(self, folder: Path, fd: int) -> None:
        try:
            with os.fdopen(fd, "wb") as pipe, tarfile.open(fileobj=pipe, mode="w|") as archive:
                for path in sorted(folder.rglob("*")):
                    info = archive.gettarinfo(path, path.relative_to(folder).as_posix())
                    info.uid = info.gid = 0
                    info.uname = info.gname = ""
                    info.mtime = LAYER_TIME
                    info.mode = 0o755 if info.isdir() else 0o644
                    if path.is_file():
                        # A second name of one content would come as a link: it becomes a file too.
                        info.type, info.linkname = tarfile.REGTYPE, ""
                        info.size = path.stat().st_size
                        with open(path, "rb") as stream:
                            archive.addfile(info, stream)
                    elif info.isdir():
                        archive.addfile(info)
        except (BrokenPipeError, ValueError):
            pass  # The engine has stopped reading; it says why.

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        return self._read.read(size)

    def __iter__(self) -> Iterator[bytes]:
        while block := self._read.read(1024 * 1024):
            yield block

    def close(self) -> None:
        """End it, also when not all was read."""
        self._read.close()
        self._thread.join()


def _short(exc: Exception) -> str:
    text = str(getattr(exc, "explanation", "") or exc)
    if "FileNotFoundError" in text or "No such file" in text:
        return "there is no such socket"
    if "Connection refused" in text or "ConnectionRefused" in text:
        return "the connection is refused"
    if "Permission denied" in text:
        return "this user may not (is it in the group docker?)"
    return _one_line(text)[:300]


def _one_line(text: str) -> str:
    return " ".join(str(text).split())


def _last_error(told: Sequence[str]) -> str:
    errors = [line for line in told if "rror" in line]
    return _one_line((errors or list(told) or ["it gave no reason"])[-1])[:400]
