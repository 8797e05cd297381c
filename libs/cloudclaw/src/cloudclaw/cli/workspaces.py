"""`claw ws`: workspaces, their versions and files."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloudclaw.cli import transfer
from cloudclaw.cli.command import command
from cloudclaw.cli.session import Session

if TYPE_CHECKING:
    from cloudclaw.v1 import workspace_pb2

_NAME = Annotated[str, typer.Argument(help="Workspace.")]
_LAST = Annotated[int | None, typer.Option("--keep-last", min=0, help="Newest versions; 0: the service's default.")]
_DAILY = Annotated[
    int | None, typer.Option("--keep-daily", min=0, help="Newest of each of the last N days; 0: the default.")
]
_SNAPSHOT = Annotated[str, typer.Option(help="A version; default: the head.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Workspaces, their versions and files.", rich_markup_mode=None)
    for name, function in (
        ("create", create),
        ("ls", ls),
        ("show", show),
        ("rm", rm),
        ("fork", fork),
        ("snapshots", snapshots),
        ("diff", diff),
        ("restore", restore),
        ("retention", retention),
        ("files", files),
        ("cat", cat),
        ("put", put),
        ("get", get),
        ("gc", gc),
    ):
        command(group, name)(function)
    app.add_typer(group, name="ws")


async def create(session: Session, name: _NAME, keep_last: _LAST = None, keep_daily: _DAILY = None) -> None:
    """Create an empty workspace."""
    workspaces = session.client().workspaces
    _tell(session, await workspaces.create(name, keep_last=keep_last or 0, keep_daily=keep_daily or 0))


async def ls(session: Session) -> None:
    """List workspaces."""
    rows = []
    async for workspace in session.client().workspaces.list():
        if session.output.json:
            session.output.message(workspace)
        else:
            rows.append(_row(workspace))
    if not session.output.json:
        columns = ("WORKSPACE", "GENERATION", "HEAD", "WRITER", "CHANGED")
        session.output.table(columns, rows, empty="no workspaces; `claw ws create NAME` makes one")


async def show(session: Session, name: _NAME) -> None:
    """Show one workspace."""
    _tell(session, await session.client().workspaces.get(name))


async def rm(session: Session, name: _NAME) -> None:
    """Remove a workspace and all its versions."""
    await session.client().workspaces.delete(name)
    if session.output.json:
        session.output.fields({})
    else:
        session.output.line(f"removed {name}")


async def fork(
    session: Session,
    source: Annotated[str, typer.Argument(help="Workspace to start from.")],
    name: Annotated[str, typer.Argument(help="The new workspace.")],
    snapshot: _SNAPSHOT = "",
) -> None:
    """Make a new workspace from another; no bytes are copied."""
    _tell(session, await session.client().workspaces.fork(source, name, snapshot_id=snapshot))


async def snapshots(session: Session, name: _NAME) -> None:
    """List the versions of a workspace, and what tasks left beside them, newest first."""
    from cloudclaw.cli.text import age, size

    rows = []
    async for found in session.client().workspaces.snapshots(name):
        if session.output.json:
            session.output.message(found)
        else:
            made = age(found.create_time, time.time())
            what = "version" if found.head else "beside"
            rows.append((found.snapshot_id, what, found.files, size(found.bytes), found.task_id or "user", made))
    if not session.output.json:
        session.output.table(("SNAPSHOT", "WHAT", "FILES", "SIZE", "BY", "AGE"), rows, empty="nothing was written yet")


async def diff(
    session: Session,
    name: _NAME,
    since: Annotated[str, typer.Option("--from", help="Older version; default: the parent.")] = "",
    until: Annotated[str, typer.Option("--to", help="Newer version; default: the head.")] = "",
) -> None:
    """Show which files differ between two versions."""
    from cloudclaw.cli.text import clean, size, word
    from cloudclaw.v1 import task_pb2

    changes = session.client().workspaces.diff(name, from_snapshot_id=since, to_snapshot_id=until)
    async for file in changes:
        if session.output.json:
            session.output.message(file)
        else:
            change = word(task_pb2.ChangedFile.Change.Name(file.change), "CHANGE_")
            session.output.line(f"{change:<9} {size(file.old_size)} → {size(file.new_size)}  {clean(file.path)}")


async def restore(
    session: Session, name: _NAME, snapshot: Annotated[str, typer.Argument(help="Version to make the head again.")]
) -> None:
    """Make an old version the head again, as a new version."""
    _tell(session, await session.client().workspaces.restore(name, snapshot))


async def retention(session: Session, name: _NAME, keep_last: _LAST = None, keep_daily: _DAILY = None) -> None:
    """Say how many old versions are kept beside the head, or (without options) show it."""
    workspaces = session.client().workspaces
    workspace = await workspaces.get(name)
    if keep_last is not None or keep_daily is not None:
        now = workspace.retention
        workspace = await workspaces.update(
            name,
            keep_last=now.keep_last if keep_last is None else keep_last,
            keep_daily=now.keep_daily if keep_daily is None else keep_daily,
        )
    _tell(session, workspace)


async def files(
    session: Session,
    name: _NAME,
    path: Annotated[str, typer.Argument(help="Folder; default: the top.")] = "",
    snapshot: _SNAPSHOT = "",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Descend into folders.")] = False,
) -> None:
    """List files."""
    from cloudclaw.cli.text import age, size
    from cloudclaw.v1 import workspace_pb2

    rows = []
    listed = session.client().workspaces.list_files(name, path, snapshot_id=snapshot, recursive=recursive)
    async for file in listed:
        if session.output.json:
            session.output.message(file)
            continue
        mark = {workspace_pb2.FILE_TYPE_DIRECTORY: "/", workspace_pb2.FILE_TYPE_SYMLINK: f" -> {file.target}"}
        changed = age(file.modify_time, time.time())
        rows.append((f"{file.mode:04o}", size(file.size), changed, file.path + mark.get(file.type, "")))
    if not session.output.json:
        session.output.table(("MODE", "SIZE", "AGE", "PATH"), rows, empty="no files")


async def cat(
    session: Session,
    name: _NAME,
    path: Annotated[str, typer.Argument(help="File.")],
    snapshot: _SNAPSHOT = "",
) -> None:
    """Print one file, byte for byte."""
    async for data in session.client().workspaces.read_file(name, path, snapshot_id=snapshot):
        if session.output.json:
            from cloudclaw.v1 import workspace_pb2

            session.output.message(workspace_pb2.ReadFileResponse(data=data))
        else:
            session.output.raw(data)


async def put(
    session: Session,
    sources: Annotated[list[Path], typer.Argument(metavar="DIR|FILE… NAME", help="What to write; the workspace.")],
    replace: Annotated[bool, typer.Option("--replace", help="In place of what is there, not over it.")] = False,
    create: Annotated[bool, typer.Option("--create", help="Create the workspace if it does not exist.")] = False,
) -> None:
    """Write a folder's content, or files, as one new version: all of it, or nothing."""
    await transfer.put(session, sources, replace=replace, create=create)


async def get(
    session: Session,
    name: _NAME,
    directory: Annotated[Path, typer.Argument(help="New or empty folder to write to.")],
    snapshot: _SNAPSHOT = "",
    outside_links: Annotated[
        bool, typer.Option("--outside-links", help="Make symlinks too that lead out of the folder.")
    ] = False,
) -> int:
    """Fetch the whole tree into a folder."""
    return await transfer.get(session, name, directory, snapshot, outside_links=outside_links)


async def gc(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove old versions and what nothing refers to, now (role operator). With --tenant, of that tenant only."""
    from cloudclaw.cli.text import size

    tenant = ""
    if "tenant" in session.given.explicit:
        # Here it says whose garbage, not whose token.
        tenant = session.given.tenant or ""
        session.given = replace(session.given, tenant=None)
    reports = await session.operator(session.endpoint).workspaces.collect_garbage(tenant, dry_run=dry_run)
    if session.output.json:
        for report in reports:
            session.output.message(report)
        return
    rows = [
        (
            report.tenant,
            report.snapshots_removed,
            f"{report.objects_removed} ({size(report.bytes_removed)})",
            f"{report.objects_waiting} ({size(report.bytes_waiting)})",
            f"{report.objects_kept} ({size(report.bytes_kept)})",
        )
        for report in reports
    ]
    removed = "WOULD REMOVE" if dry_run else "REMOVED"
    session.output.table(("TENANT", "VERSIONS", removed, "OF KEPT, WAITING", "KEPT"), rows, empty="no tenants")


def _tell(session: Session, workspace: workspace_pb2.Workspace) -> None:
    if session.output.json:
        session.output.message(workspace)
        return
    session.output.record(
        {
            "workspace": workspace.name,
            "generation": workspace.generation,
            "head": workspace.head_snapshot_id,
            "writer": workspace.writer,
            "keeps": _keeps(workspace),
        }
    )


def _keeps(workspace: workspace_pb2.Workspace) -> str:
    last, daily = workspace.retention.keep_last, workspace.retention.keep_daily
    return f"last {last or '(default)'}, daily {daily or '(default)'}"


def _row(workspace: workspace_pb2.Workspace) -> tuple[object, ...]:
    from cloudclaw.cli.text import age

    return (
        workspace.name,
        workspace.generation,
        workspace.head_snapshot_id or "-",
        workspace.writer or "-",
        f"{age(workspace.update_time, time.time())} ago",
    )
