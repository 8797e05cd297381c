"""A backend's configuration, made of a pool's settings and options, with every name and type checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_pool_manager.backends.config import BackendConfig


def config_of(backend: object, values: Mapping[str, Any]) -> BackendConfig:
    """The configuration that `backend` is constructed with: its `config_type`, or a `BackendConfig`.

    Raises:
        InvalidArgumentError: a name is unknown, or a value is not of its type; the message says which.
    """
    made: type[BackendConfig] = getattr(backend, "config_type", BackendConfig)
    known = [field.name for field in fields(made)]
    for name in values:
        if name not in known:
            raise InvalidArgumentError(f"there is no option {name!r}; there are {', '.join(sorted(known))}", field=name)
    try:
        return TypeAdapter(made).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InvalidArgumentError(f"{name}: {first['msg']}", field=name) from error
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{error.field}: {error.message}", field=error.field) from error
