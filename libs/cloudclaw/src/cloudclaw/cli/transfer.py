"""`claw ws put` and `claw ws get`: whole trees, up and down."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO, Final

from cloudclaw.cli.session import Session

_PIECE: Final = 256 * 1024
_SPOOLED: Final = 16 * 1024 * 1024


async def put(session: Session, sources: Sequence[Path], *, replace: bool, create: bool) -> None:
    """Write the sources to the workspace that the last of them names.

    Raises `InvalidArgumentError` when there is no source, or one is not there.
    """
    from cloudclaw.cli.archives import pack
    from cloudclaw.cli.text import clean, entries, size
    from cloudclaw.errors import AlreadyExistsError, InvalidArgumentError

    *paths, last = sources
    name = str(last)
    if not paths:
        raise InvalidArgumentError("say what to write, and to which workspace: `claw ws put DIR NAME`", field="NAME")
    client = session.client()
    if create:
        with contextlib.suppress(AlreadyExistsError):
            await client.workspaces.create(name)
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED) as archive:
        count = await asyncio.to_thread(pack, paths, archive, lambda p: session.output.remark(f"left out: {clean(p)}"))
        total = archive.tell()
        archive.seek(0)
        with session.output.progress(f"writing to {name}", total) as progress:

            async def pieces() -> AsyncGenerator[bytes, None]:
                while piece := await asyncio.to_thread(archive.read, _PIECE):
                    yield piece
                    progress.advance(len(piece))

            snapshot = await client.workspaces.upload_archive(name, pieces(), replace=replace)
    if session.output.json:
        session.output.message(snapshot)
    else:
        session.output.line(f"{name}: {entries(count)}, sent in {size(total)}, snapshot {snapshot.snapshot_id}")


async def get(session: Session, name: str, directory: Path, snapshot: str, *, outside_links: bool) -> int:
    """Fetch the tree into `directory`; answers the exit code: 6 when something was refused.

    With `outside_links` symlinks that lead out of the folder are made as well.
    """
    from cloudclaw.cli.archives import unpack
    from cloudclaw.cli.failures import PRECONDITION
    from cloudclaw.cli.text import clean, entries
    from cloudclaw.errors import PreconditionError

    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise PreconditionError(f"{directory} is not an empty folder; give a new one", subject=str(directory))
    refused: list[str] = []
    with tempfile.SpooledTemporaryFile(max_size=_SPOOLED) as archive:
        await _fetch(session, name, snapshot, archive)
        archive.seek(0)
        count = await asyncio.to_thread(unpack, archive, directory, refused.append, outside_links=outside_links)
    if session.output.json:
        session.output.fields({"directory": str(directory), "entries": count, "refused": refused})
    else:
        session.output.line(f"{directory}: {entries(count)}")
        for entry in refused:
            session.output.remark(f"refused: {clean(entry)}")
    return PRECONDITION if refused else 0


async def _fetch(session: Session, name: str, snapshot: str, target: IO[bytes]) -> None:
    with session.output.progress(f"reading {name}") as progress:
        async with aclosing(session.client().workspaces.download_archive(name, snapshot_id=snapshot)) as pieces:
            async for piece in pieces:
                await asyncio.to_thread(target.write, piece)
                progress.advance(len(piece))
