"""What a slot's container is made of, as the engine's API takes it."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cloudclaw_pool_manager.backends.containers import seccomp
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.backends.layout import SlotFiles
from cloudclaw_pool_manager.backends.spawn import beside_system
from cloudclaw_supervisor import boot

IDENTITY: Final = "io.cloudclaw.directory"
NODE: Final = "io.cloudclaw.node"
POOL: Final = "io.cloudclaw.pool"
SLOT: Final = "io.cloudclaw.slot"
"""Labels. The first is the random name of the slots' directory, by which a manager knows its own; the others are for
people."""

_LIBRARY: Final = f"{boot.DIRECTORY}/lib"
_PERIOD_US: Final = 100_000
_ENTRY: Final = (
    f"import sys; sys.path.insert(0, {_LIBRARY!r}); sys.dont_write_bytecode = True; "
    "from cloudclaw_supervisor.boot import main; main()"
)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose containers they are.

    Attributes:
        identity: of the slots' directory.
        library: directory on the host that holds the supervisor's package.
        apparmor: the engine has AppArmor.
    """

    identity: str
    library: Path
    apparmor: bool

    @property
    def label(self) -> str:
        """By which the engine finds them."""
        return f"{IDENTITY}={self.identity}"

    def name(self, slot: str) -> str:
        """Of the container of `slot-N`; the engine lets no second one have it."""
        return f"cloudclaw-{self.identity[:12]}-{slot}"

    def made(self, name: str, labels: Mapping[str, str]) -> bool:
        """A container of this name and with these labels is one of ours. Labels alone do not tell: an image that
        somebody commits from a slot hands them on."""
        return labels.get(IDENTITY) == self.identity and name == self.name(labels.get(SLOT, ""))


def container(config: DockerConfig, owner: Owner, files: SlotFiles, uid: int) -> dict[str, Any]:
    """The container of one slot, for `POST /containers/create`."""
    return {
        "Image": config.image,
        "User": f"{uid}:{uid}",
        "Hostname": files.name,
        "WorkingDir": "/",
        "Entrypoint": [config.python or "python3"],
        "Cmd": ["-I", "-S", "-c", _ENTRY],
        "NetworkDisabled": True,
        "StopTimeout": 1,
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {IDENTITY: owner.identity, NODE: config.node, POOL: config.pool, SLOT: files.name},
        "HostConfig": {
            "Mounts": _mounts(config, owner, files),
            "CapDrop": ["ALL"],
            "SecurityOpt": _security(config, owner),
            # Under /proc nothing may be masked, or the kernel lets no sandbox mount its own; of /sys nothing is left.
            "MaskedPaths": ["/sys"],
            "ReadonlyPaths": [],
            "ReadonlyRootfs": True,
            "NetworkMode": "none",
            "IpcMode": "private",
            "Memory": config.container_memory,
            "MemorySwap": config.container_memory,
            "PidsLimit": config.container_pids,
            "CpuPeriod": _PERIOD_US,
            "CpuQuota": config.container_millis * _PERIOD_US // 1000,
            "Runtime": config.runtime,
            "RestartPolicy": {"Name": "no"},
            "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}},
        },
    }


def _mounts(config: DockerConfig, owner: Owner, files: SlotFiles) -> list[Mapping[str, Any]]:
    def bind(source: str | Path, target: str, *, read_only: bool, propagation: str = "rprivate") -> Mapping[str, Any]:
        options = {"Propagation": propagation}
        return {
            "Type": "bind",
            "Source": str(source),
            "Target": target,
            "ReadOnly": read_only,
            "BindOptions": options,
        }

    return [
        bind(files.control, f"{boot.DIRECTORY}/ctl", read_only=False),
        # Trees that are mounted here later arrive inside, and writable: only this mount itself is read-only.
        bind(files.box, f"{boot.DIRECTORY}/box", read_only=True, propagation="rslave"),
        bind(owner.library, _LIBRARY, read_only=True),
        *(bind(path, place, read_only=True) for path, place in places(config.read_only)),
    ]


def places(read_only: tuple[str, ...]) -> list[tuple[str, str]]:
    """Where the container has each of a template's directories.

    Those beneath the system's lie where they are to be seen, and sandboxes bind them with the system; the others
    lie where any uid gets, whatever their parents' permissions in the image.
    """
    beside = beside_system(read_only)
    return [(path, f"{boot.DIRECTORY}/extra/{beside.index(path)}" if path in beside else path) for path in read_only]


def _security(config: DockerConfig, owner: Owner) -> list[str]:
    options = ["no-new-privileges:true", f"seccomp={seccomp.profile(platform.machine(), config.seccomp_extra)}"]
    if owner.apparmor and config.apparmor:
        options.append(f"apparmor={config.apparmor}")
    return options
