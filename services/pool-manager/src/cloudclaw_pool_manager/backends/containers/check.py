"""Can slots live in this engine's containers? If not, say what to install or allow."""

from __future__ import annotations

import asyncio
import os
import platform
from pathlib import Path
from typing import Final

from cloudclaw.errors import PreconditionError
from cloudclaw_pool_manager.backends import probe
from cloudclaw_pool_manager.backends.containers import seccomp
from cloudclaw_pool_manager.backends.containers.config import DockerConfig
from cloudclaw_pool_manager.backends.containers.engine import Engine

_PROFILES: Final = Path("/sys/kernel/security/apparmor/profiles")


async def engine(engine: Engine, config: DockerConfig) -> bool:
    """Look at the engine and the image; True when AppArmor confines containers.

    Raises:
        PreconditionError: they do not serve; the message says what to do.
        UnavailableError: the engine does not answer.
    """
    info = await engine.info()
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    for name, why in (("userns", "maps the uids of containers"), ("rootless", "runs without root")):
        if any(option.startswith(f"name={name}") for option in options):
            raise PreconditionError(
                f"the engine at {config.engine} {why}, and slots need uids of their own: use another engine",
                subject=config.engine,
                reason="ENGINE_UNSUITABLE",
            )
    if config.runtime and config.runtime not in (info.get("Runtimes") or {}):
        raise PreconditionError(
            f"the engine at {config.engine} has no runtime {config.runtime!r}: add it to its `daemon.json`",
            subject=config.runtime,
            reason="NO_RUNTIME",
        )
    await engine.check_image(config.image)
    apparmor = any(option.startswith("name=apparmor") for option in options)
    if apparmor and config.apparmor:
        await asyncio.to_thread(_profile_loaded, config.apparmor)
    return apparmor


def host(config: DockerConfig) -> None:
    """Look at this host and process. Raises `PreconditionError`."""
    if os.geteuid() != 0:
        raise PreconditionError(
            "the docker backend attaches files by idmapped mounts, which needs root: run the pool-manager as root, or"
            " use the bubblewrap backend",
            subject="root",
        )
    try:
        seccomp.profile(platform.machine(), config.seccomp_extra)
    except KeyError:
        raise PreconditionError(
            f"there is no seccomp profile for {platform.machine()}: run the node on x86_64 or aarch64",
            subject="seccomp",
        ) from None
    probe.try_mapping(config)


def absent(config: DockerConfig) -> PreconditionError:
    """No engine answers."""
    return PreconditionError(
        f"no Docker engine answers at {config.engine}: start one, or name its socket in the pool's option `engine`",
        subject=config.engine,
        reason="NO_ENGINE",
    )


def host_has_apparmor() -> bool:
    """Whether AppArmor is on, as the kernel says."""
    return _PROFILES.exists()


def _profile_loaded(name: str) -> None:
    try:
        loaded = _PROFILES.read_text().splitlines()
    except OSError:
        return  # not to be seen from here; the engine will say
    if not any(line.startswith(f"{name} (") for line in loaded):
        raise PreconditionError(
            f"AppArmor has no profile {name!r}: load it with `apparmor_parser -r deploy/apparmor/{name}`, or set the"
            " pool's option `apparmor`",
            subject=name,
            reason="NO_APPARMOR_PROFILE",
        )
