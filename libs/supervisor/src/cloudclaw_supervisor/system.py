"""What a sandbox takes from the system around it: of the host, or of a container's image.

Described as JSON, because in a container the supervisor looks and the manager, outside, makes the skeleton.
"""

from __future__ import annotations

import base64
import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DIRECTORIES = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
FROM_ETC = ("ssl/certs", "alternatives", "pki/tls/certs", "ca-certificates")
COPIED = ("ld.so.cache", "ld.so.conf", "localtime", "mime.types", "protocols", "services", "ssl/openssl.cnf")
"""What a task sees of /etc: nothing in it is secret, and no more than programs need."""

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class MissingError(Exception):
    """The system lacks a program that every slot needs."""


def program(name: str) -> str:
    """Path of `name`, symlinks resolved. Raises `MissingError` where there is none."""
    found = shutil.which(name, path=os.environ.get("PATH") or _PATH)
    if found is None:
        raise MissingError(f"{name} is missing")
    return os.path.realpath(found)


def describe(shell: str) -> dict[str, Any]:
    """Describe the system for the manager.

    Args:
        shell: path of dash, the first process of every sandbox.

    Returns:
        `links`: names in `/` that are symlinks, and where they lead; `directories`: those that are directories;
        `etc_directories`: those of `FROM_ETC` that are there; `etc_files`: content of those of `COPIED` that are,
        in base64; `shell`: content of dash, in base64.
    """
    links, directories = {}, []
    for name in DIRECTORIES:
        path = f"/{name}"
        if os.path.islink(path):
            links[name] = os.readlink(path)
        elif os.path.isdir(path):
            directories.append(name)
    return {
        "links": links,
        "directories": directories,
        "etc_directories": [name for name in FROM_ETC if os.path.isdir(f"/etc/{name}")],
        "etc_files": {name: _content(f"/etc/{name}") for name in COPIED if os.path.isfile(f"/etc/{name}")},
        "shell": _content(shell),
    }


def _content(path: str) -> str:
    with open(path, "rb") as file:
        return base64.b64encode(file.read()).decode()
