"""A slot's files on the host, and the skeleton that becomes a sandbox's `/`.

{node_dir}/slots/{name}.lock     locked by the supervisor and the sandbox's first process
{node_dir}/slots/{name}/ctl      socket and spool; the slot's uid alone; never in a sandbox
{node_dir}/slots/{name}/box      the skeleton; the manager's; with empty `workspace` and `home/agent`
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cloudclaw_pool_manager.backends import mounts
from cloudclaw_supervisor import command

SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
FROM_HOST = ("ssl/certs", "alternatives", "pki/tls/certs", "ca-certificates")
COPIED = ("ld.so.cache", "ld.so.conf", "localtime", "mime.types", "protocols", "services", "ssl/openssl.cnf")
"""What a task sees of the host's /etc: nothing in it is secret, and no more than programs need."""

_ETC = {
    "passwd": "root:x:0:0:root:/nonexistent:/usr/sbin/nologin\n"
    "agent:x:1000:1000:agent:/home/agent:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
    "group": "root:x:0:\nagent:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\nprotocols: files\nservices: files\n",
    "resolv.conf": "",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
}


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

    def create(self, uid: int, shell: Path, extra: tuple[str, ...]) -> None:
        """Make the slot's files for a supervisor of `uid`.

        Args:
            shell: dash on the host.
            extra: the template's own read-only directories; their mount points are made.
        """
        self.root.mkdir(mode=0o711)
        self.root.chmod(0o711)
        self.control.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(self.control, uid, uid)
        for name in ("box", "box/proc", "box/dev", "box/tmp", "box/run", "box/etc", "box/var", "box/root"):
            _directory(self.root / name)
        for name in ("workspace", "home", "home/agent"):
            _directory(self.box / name)
        (self.box / "var/tmp").symlink_to("../tmp")
        self._system()
        self._etc()
        for path in extra:
            _mount_point(self.box, Path(path))
        init = self.box / command.INIT.lstrip("/")
        shutil.copyfile(shell, init)
        # Nobody but root may read it, so the kernel makes its process non-dumpable (trap 3).
        init.chmod(0o111)

    def read_only(self) -> list[tuple[str, str]]:
        """(source, destination) of what every sandbox sees of the host's system."""
        pairs = [(f"/{name}", f"/{name}") for name in SYSTEM if _is_plain_directory(Path("/") / name)]
        return pairs + [(f"/etc/{name}", f"/etc/{name}") for name in FROM_HOST if Path("/etc", name).is_dir()]

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

    def _system(self) -> None:
        for name in SYSTEM:
            host = Path("/") / name
            if host.is_symlink():
                (self.box / name).symlink_to(os.readlink(host))
            elif host.is_dir():
                _directory(self.box / name)

    def _etc(self) -> None:
        etc = self.box / "etc"
        for name in FROM_HOST:
            if Path("/etc", name).is_dir():
                (etc / name).mkdir(parents=True)
        for name, text in {**_ETC, "hostname": f"{self.name}\n"}.items():
            (etc / name).write_text(text)
        for name in COPIED:
            if Path("/etc", name).is_file():
                (etc / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(Path("/etc", name), etc / name)
        for path in [etc, *etc.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)


def _directory(path: Path) -> None:
    path.mkdir()
    path.chmod(0o755)


def _is_plain_directory(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _mount_point(box: Path, path: Path) -> None:
    """Make what `path` is mounted on, unless the system already brings it."""
    if path.parts[1] in SYSTEM:
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
