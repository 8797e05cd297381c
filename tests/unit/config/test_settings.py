"""Settings: where they come from, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from cloudclaw.config import ConfigurationError, ServerSettings, ServiceSettings, load, read


class Demo(ServiceSettings):
    """Settings of a service that only these tests know."""

    model_config = SettingsConfigDict(env_prefix="CLAW_DEMO_")

    server: ServerSettings = ServerSettings(listen="127.0.0.1:7409")
    names: list[str] = Field(default_factory=list, description="some names")
    labels: dict[str, str] = Field(default_factory=dict, description="some labels")
    count: int = Field(default=1, ge=0, description="a number")


def test_without_anything_the_defaults_serve() -> None:
    settings = read(Demo, environ={})
    assert settings.server.listen == "127.0.0.1:7409"
    assert settings.etcd.endpoints == ["127.0.0.1:2379"]
    assert not settings.client_tls.enabled


def test_the_environment_goes_before_the_file_and_the_file_before_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "demo.toml"
    file.write_text('count = 3\n[server]\nadvertise = "a:1"\n[log]\nlevel = "debug"\n')
    settings = read(Demo, file=file, environ={"CLAW_DEMO_COUNT": "4", "CLAW_DEMO_LOG__FORMAT": "console"})
    assert settings.count == 4
    assert (settings.log.level, settings.log.format) == ("debug", "console")
    # A group that is set in part keeps this service's own defaults for the rest.
    assert (settings.server.listen, settings.server.advertise) == ("127.0.0.1:7409", "a:1")


@pytest.mark.parametrize(
    ("variable", "value", "field", "expected"),
    [
        ("CLAW_DEMO_ETCD__ENDPOINTS", '["a:1", "b:2"]', "etcd", ["a:1", "b:2"]),
        ("CLAW_DEMO_ETCD__ENDPOINTS", "http://a:1, b:2/", "etcd", ["a:1", "b:2"]),
        ("CLAW_DEMO_NAMES", "x,y", "names", ["x", "y"]),
        ("CLAW_DEMO_NAMES", "", "names", []),
        ("CLAW_DEMO_LABELS", '{"a": "b"}', "labels", {"a": "b"}),
        ("CLAW_DEMO_LABELS", "a=b,c=d=e", "labels", {"a": "b", "c": "d=e"}),
    ],
)
def test_lists_and_tables_are_written_in_json_or_with_commas(
    variable: str, value: str, field: str, expected: Any
) -> None:
    settings = read(Demo, environ={variable: value})
    found = settings.etcd.endpoints if field == "etcd" else getattr(settings, field)
    assert found == expected


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"CLAW_DEMO_CUONT": "1"}, "CLAW_DEMO_CUONT: no such setting; did you mean CLAW_DEMO_COUNT?"),
        ({"CLAW_DEMO_ETCD__ENDPOINT": "a:1"}, "did you mean CLAW_DEMO_ETCD__ENDPOINTS?"),
        ({"CLAW_DEMO_COUNT": "-1"}, "count (CLAW_DEMO_COUNT)"),
        ({"CLAW_DEMO_COUNT": "many"}, "count (CLAW_DEMO_COUNT)"),
        ({"CLAW_DEMO_NAMES": "[1"}, "CLAW_DEMO_NAMES: not valid JSON"),
        ({"CLAW_DEMO_ETCD__ENDPOINTS": "nowhere"}, "must be host:port"),
        ({"CLAW_DEMO_ETCD__ENDPOINTS": "[]"}, "etcd.endpoints (CLAW_DEMO_ETCD__ENDPOINTS)"),
        ({"CLAW_DEMO_SERVER__LISTEN": "a:99999"}, "must be host:port"),
        ({"CLAW_DEMO_SERVER__TLS__CERT": "/c"}, "`cert` and `key` go together"),
        ({"CLAW_DEMO_SERVER__TLS__CLIENT_CA": "/c"}, "mutual TLS needs a certificate of the server too"),
        ({"CLAW_DEMO_CLIENT_TLS__KEY": "/k"}, "`cert` and `key` go together"),
        ({"CLAW_DEMO_ETCD__CERT": "/c", "CLAW_DEMO_ETCD__KEY": "/k"}, "`cert` without `ca`"),
        ({"CLAW_DEMO_LOG__LEVEL": "loud"}, "log.level (CLAW_DEMO_LOG__LEVEL)"),
    ],
)
def test_what_is_wrong_is_refused_by_name(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(Demo, environ=environ)
    assert message in str(caught.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        read(Demo, environ={"CLAW_DEMO_COUNT": "x", "CLAW_DEMO_LOG__LEVEL": "y"})
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("colour = 1", "colour: no such setting"),
        ("[etcd]\nendpoint = 1", "etcd.endpoint: no such setting; did you mean etcd.endpoints?"),
        ("etcd = 5", "etcd"),
        ("= nonsense", "demo.toml"),
    ],
)
def test_a_file_with_unknown_or_broken_content_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "demo.toml"
    file.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        read(Demo, file=file, environ={})
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        read(Demo, file=tmp_path / "none.toml", environ={})


def test_variables_of_the_command_line_are_nobodys_settings() -> None:
    class Workspace(ServiceSettings):
        model_config = SettingsConfigDict(env_prefix="CLAW_WORKSPACE_")

    read(Workspace, environ={"CLAW_WORKSPACE_ENDPOINT": "127.0.0.1:7403", "CLAW_TOKEN": "x"})


def test_settings_cannot_be_changed() -> None:
    settings = read(Demo, environ={})
    with pytest.raises(ValidationError):
        settings.count = 5
    with pytest.raises(ValidationError):
        settings.etcd.endpoints = []


def test_secrets_are_not_shown() -> None:
    settings = read(Demo, environ={"CLAW_DEMO_OBJECTS__SECRET_KEY": "hush"})
    assert settings.objects.secret_key == "hush"
    assert "hush" not in repr(settings)


def test_load_ends_the_process_with_the_problems(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLAW_DEMO_COUNT", "-5")
    with pytest.raises(SystemExit) as caught:
        load(Demo, [])
    assert caught.value.code == 2
    assert "count (CLAW_DEMO_COUNT)" in capsys.readouterr().err


def test_help_lists_every_field_with_its_variable(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        load(Demo, ["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for expected in ("CLAW_DEMO_COUNT", "a number", "CLAW_DEMO_SERVER__TLS__CLIENT_CA", "default 127.0.0.1:7409"):
        assert expected in text
