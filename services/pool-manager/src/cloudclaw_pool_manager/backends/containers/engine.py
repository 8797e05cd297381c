"""The Docker engine, asked in threads of its own so that it never holds up the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import requests
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from urllib3.exceptions import ReadTimeoutError

from cloudclaw.errors import PreconditionError, UnavailableError
from cloudclaw_pool_manager.ports.backend import SlotFailedError

_T = TypeVar("_T")
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Container:
    """A container as the engine describes it.

    Attributes:
        id: the engine's.
        name: without the slash.
        state: `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
        pid: of its first process, 0 when it does not run.
        end: how it ended, in words; empty while it runs.
        labels: as given when it was made.
    """

    id: str
    name: str
    state: str
    pid: int
    end: str
    labels: Mapping[str, str]


class Engine:
    """One client of one engine, made when it is first needed, and anew once the engine did not answer: one that comes
    back may be of another release, and speak another version of its API.

    Every method raises `UnavailableError(reason="ENGINE_AWAY")` when the engine does not answer, and
    `SlotFailedError` when it refuses.

    Args:
        url: the engine's socket.
        timeout: seconds that an answer may take, each part of it, and that events may stay away.
    """

    def __init__(self, url: str, timeout: float):
        self._url = url
        self._timeout = timeout
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="docker")
        self._lock = threading.Lock()  # never held while something is waited for
        self._made: Any = None

    async def info(self) -> Mapping[str, Any]:
        """What the engine says of itself."""
        found: Mapping[str, Any] = await self._ask(lambda client: client.info())
        return found

    async def ping(self) -> None:
        """Return when the engine answers."""
        await self._ask(lambda client: client.ping())

    async def check_image(self, name: str) -> None:
        """Raise `PreconditionError` when the image is not there."""
        try:
            await self._ask(lambda client: client.inspect_image(name))
        except _ImageMissingError:
            raise PreconditionError(
                f"the engine at {self._url} has no image {name!r}: build it with `make images`, or pull it",
                subject=name,
                reason="NO_IMAGE",
            ) from None

    async def create(self, name: str, config: Mapping[str, Any]) -> str:
        """Make a container, and return its id. No two have the same name."""

        def create(client: Any) -> str:
            made: str = client.create_container_from_config(dict(config), name)["Id"]
            return made

        return await self._ask(create)

    async def start(self, container: str) -> None:
        """Start it; returns when its first process runs."""
        await self._ask(lambda client: client.start(container))

    async def inspect(self, container: str) -> Container | None:
        """A container by id or name, None when there is none."""
        try:
            return _described(await self._ask(lambda client: client.inspect_container(container)))
        except _ContainerMissingError:
            return None

    async def labelled(self, label: str) -> list[Container]:
        """All containers with `label` (`key=value`), running or not."""
        listed = await self._ask(lambda client: client.containers(all=True, filters={"label": label}))
        return [found for entry in listed if (found := await self.inspect(entry["Id"])) is not None]

    async def remove(self, container: str) -> None:
        """Kill and remove it; harmless when it is gone, or going."""

        def remove(client: Any) -> None:
            with contextlib.suppress(APIError):  # the signal of a removal does not reach one that is paused
                client.unpause(container)
            client.remove_container(container, force=True, v=True)

        with contextlib.suppress(_ContainerMissingError, _RemovingError):
            await self._ask(remove)

    async def last_words(self, container: str) -> str:
        """The last line that it wrote, empty when there is none to be had."""
        try:
            text: bytes = await self._ask(lambda client: client.logs(container, tail=3))
        except (SlotFailedError, UnavailableError):
            return ""
        return " ".join(text.decode(errors="replace").strip().splitlines()[-1:])

    def events(self, label: str) -> Events:
        """Events of containers with `label` from now on. Blocking."""

        def listen() -> Events:
            client = self._new_client()
            try:
                self._forget(unless=client.api_version)  # events end when the engine does
                stream = client.events(decode=True, filters={"type": "container", "label": label})
            except BaseException:
                client.close()
                raise
            return Events(client, stream)

        return self._translating(listen)

    async def close(self) -> None:
        """End the client; calls that are under way may go on for their timeout."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._forget)

    async def _ask(self, call: Callable[[Any], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, functools.partial(self._call, call))

    def _call(self, call: Callable[[Any], _T]) -> _T:
        try:
            return self._translating(lambda: call(self._client()))
        except UnavailableError:
            self._forget()
            raise

    def _translating(self, call: Callable[[], _T]) -> _T:
        try:
            return call()
        except (DockerException, requests.exceptions.RequestException, OSError) as error:
            raise self._translated(error) from error

    def _client(self) -> Any:
        """The one that calls share."""
        self._knock()
        made = self._made
        if made is None:
            new = self._new_client()
            with self._lock:
                made = self._made = self._made or new
            if made is not new:
                new.close()
        return made

    def _new_client(self) -> Any:
        """Asks for the engine's version. Of several threads that do so at once each waits for itself alone."""
        self._knock()
        return _Client(base_url=self._url, version="auto", timeout=self._timeout)

    def _forget(self, unless: str = "") -> None:
        """Ask for the engine's version again with the next call, `unless` that is what the calls speak."""
        with self._lock:
            made = self._made
            if made is None or made.api_version == unless:
                return
            self._made = None
        made.close()

    def _knock(self) -> None:
        """Raise OSError when nobody listens: the SDK leaves a socket open for each time that it finds out."""
        if self._url.startswith("unix://"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as knocking:
                knocking.settimeout(self._timeout)
                knocking.connect(self._url.removeprefix("unix://"))

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, ImageNotFound):
            return _ImageMissingError(str(error.explanation))
        if isinstance(error, NotFound):
            return _ContainerMissingError(str(error.explanation))
        if isinstance(error, APIError):
            words = str(error.explanation or error)
            kind = _RemovingError if "is already in progress" in words else SlotFailedError
            return kind(f"the Docker engine refuses: {words}")
        return UnavailableError(
            f"the Docker engine at {self._url} does not answer: {_short(error)}", reason="ENGINE_AWAY"
        )


class Events:
    """A stream of events, as the engine's API describes them. It ends when the engine has said nothing for its timeout:
    a connection whose other end is gone without a word looks the same."""

    def __init__(self, client: Any, stream: Any):
        self._client = client
        self._stream = stream

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        with contextlib.suppress(ReadTimeoutError):
            yield from self._stream

    def close(self) -> None:
        """Hang up; a thread that waits for the next event finds the end."""
        with contextlib.suppress(Exception):  # the SDK digs for the socket, which may be gone
            self._stream.close()
        self._client.close()


class _Client(APIClient):  # type: ignore[misc]
    """The SDK's, which waits for events without a limit."""

    def send(self, request: Any, **options: Any) -> Any:
        if options.get("timeout") is None:
            options["timeout"] = self.timeout
        return super().send(request, **options)


class _ImageMissingError(SlotFailedError):
    """There is no such image."""


class _ContainerMissingError(SlotFailedError):
    """There is no such container."""


class _RemovingError(SlotFailedError):
    """Somebody removes the container already."""


def _short(error: Exception) -> str:
    """The innermost of the errors that requests wraps in one another."""
    words = str(error)
    for known in ("Connection refused", "No such file or directory", "Permission denied", "Read timed out"):
        if known in words:
            return known
    return words[:200]


def _described(data: Mapping[str, Any]) -> Container:
    state = data["State"]
    running = state["Status"] in ("running", "paused", "created")
    end = "" if running else f"it ended with code {state['ExitCode']}"
    if not running and state.get("OOMKilled"):
        end = "it was killed for want of memory"
    if not running and state.get("Error"):
        end += f": {state['Error']}"
    return Container(
        id=data["Id"],
        name=data["Name"].lstrip("/"),
        state=state["Status"],
        pid=int(state.get("Pid") or 0),
        end=end,
        labels=data["Config"].get("Labels") or {},
    )
