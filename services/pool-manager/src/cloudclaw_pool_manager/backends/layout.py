"""A slot's files on the host, and the skeleton that becomes a sandbox's `/`.

{node_dir}/slots/{name}.lock     locked by the supervisor and the sandbox's first process
{node_dir}/slots/{name}/ctl      socket and spool; the slot's uid alone; never in a sandbox
{node_dir}/slots/{name}/box      the skeleton; the manager's; with empty `workspace` and `home/agent`
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cloudclaw_pool_manager.backends import mounts
from cloudclaw_supervisor import command, system

_ETC = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
    "agent:x:1000:1000:agent:/home/agent:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n",
    "resolv.conf": "",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}

_LINK = re.compile(r"[A-Za-z0-9_./-]{1,255}")


@dataclass(frozen=True, slots=True)
class System:
    """What sandboxes take from the system around them, the host's or an image's (`cloudclaw_supervisor.system`).

    Attributes:
        links: names in `/` that are symlinks, and where they lead.
        directories: names in `/` that are directories, bound read-only.
        etc_directories: names in `/etc`, bound read-only.
        etc_files: contents of files in `/etc`, copied.
        shell: content of dash, the first process of every sandbox.
    """

    links: Mapping[str, str]
    directories: tuple[str, ...]
    etc_directories: tuple[str, ...]
    etc_files: Mapping[str, bytes]
    shell: bytes

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Self:
        """Take a description, which an image may have made, so that no name in it is believed.

        Raises:
            ValueError: it is none.
        """
        try:
            links = {name: str(data["links"][name]) for name in system.DIRECTORIES if name in data["links"]}
            found = cls(
                links={name: target for name, target in links.items() if _LINK.fullmatch(target)},
                directories=tuple(name for name in system.DIRECTORIES if name in data["directories"]),
                etc_directories=tuple(name for name in system.FROM_ETC if name in data["etc_directories"]),
                etc_files={
                    name: base64.b64decode(data["etc_files"][name])
                    for name in system.COPIED
                    if name in data["etc_files"]
                },
                shell=base64.b64decode(data["shell"]),
            )
        except (KeyError, TypeError, binascii.Error) as error:
            raise ValueError(f"this describes no system: {error!r}") from error
        return found

    @property
    def read_only(self) -> list[tuple[str, str]]:
        """(source, destination) of what every sandbox sees of it."""
        pairs = [(f"/{name}", f"/{name}") for name in self.directories]
        return pairs + [(f"/etc/{name}", f"/etc/{name}") for name in self.etc_directories]


def host_system(shell: Path) -> System:
    """This host's. `shell` is dash."""
    return System.parse(system.describe(str(shell)))


class SlotFiles:
    """Paths of one slot."""

    def __init__(self, node_dir: Path, number: int):
        self.name = f"slot-{number}"
        self.slots = node_dir / "slots"
        self.root = self.slots / self.name
        self.lock = self.slots / f"{self.name}.lock"
        self.control = self.root / "ctl"
        self.box = self.root / "box"
        self.errors = self.slots / f"{self.name}.log"

    def create(self, uid: int, system: System, extra: tuple[str, ...]) -> None:
        """Make the slot's files for a supervisor of `uid`.

        Args:
            system: what is around its sandboxes.
            extra: the template's own read-only directories; their mount points are made.
        """
        self.create_control(uid)
        self.fill_box(system, extra)

    def create_control(self, uid: int) -> None:
        """Make the directories alone, `box` still empty."""
        self.root.mkdir(mode=0o711)
        self.root.chmod(0o711)
        self.control.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self.control, uid, uid)
        _directory(self.box)

    def fill_box(self, system: System, extra: tuple[str, ...]) -> None:
        """Make the skeleton."""
        for name in ("proc", "dev", "tmp", "run", "etc", "var", "root", "workspace", "home", "home/agent"):
            _directory(self.box / name)
        (self.box / "var/tmp").symlink_to("../tmp")
        for name in system.directories:
            _directory(self.box / name)
        for name, target in system.links.items():
            (self.box / name).symlink_to(target)
        self._etc(system)
        for path in extra:
            _mount_point(self.box, Path(path))
        init = self.box / command.INIT.lstrip("/")
        init.write_bytes(system.shell)
        # Nobody but root may read it, so the kernel makes its process non-dumpable (trap 3).
        init.chmod(0o111)

    def remove(self) -> None:
        """Remove the slot's files. The lock file stays: its name is the slot.

        Raises:
            OSError: a tree is still mounted below; nothing was removed.
        """
        if not self.root.exists():
            return
        mounts.detach_below(self.root)
        if mounts.mounted(self.root):
            raise OSError(f"still mounted below {self.root}")
        shutil.rmtree(self.root)

    def _etc(self, system: System) -> None:
        etc = self.box / "etc"
        for name in system.etc_directories:
            (etc / name).mkdir(parents=True)
        for name, text in {**_ETC, "hostname": f"{self.name}\n"}.items():
            (etc / name).write_text(text)
        for name, content in system.etc_files.items():
            (etc / name).parent.mkdir(exist_ok=True)
            (etc / name).write_bytes(content)
        for path in [etc, *etc.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def _directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def _mount_point(box: Path, path: Path) -> None:
    """Make what `path` is mounted on, unless the system already brings it."""
    if path.parts[1] in system.DIRECTORIES:
        return
    target = box / path.relative_to("/")
    parent = target.parent
    parent.mkdir(parents=True, exist_ok=True)
    while parent != box:
        parent.chmod(0o755)
        parent = parent.parent
    if path.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
