"""`ProtoArtifactLists`: results as the scheduler stores them."""

from __future__ import annotations

import re
from typing import Final

from google.protobuf.message import DecodeError

from cloudclaw.errors import DataLossError
from cloudclaw.v1.task_pb2 import Result
from cloudclaw_workspace.ports.results import KeptArtifact

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class ProtoArtifactLists:
    """A `cloudclaw.v1.Result`, serialized."""

    def find(self, result: bytes, path: str) -> KeptArtifact | None:
        try:
            artifacts = Result.FromString(result).artifacts
        except DecodeError as error:
            raise DataLossError(f"a task's result cannot be read: {error}") from error
        for artifact in artifacts:
            if artifact.path == path:
                # It becomes part of an object's name.
                if not _DIGEST.fullmatch(artifact.digest):
                    raise DataLossError(f"the result names artifact {path!r} by {artifact.digest[:80]!r}")
                return KeptArtifact(artifact.size, artifact.digest)
        return None
