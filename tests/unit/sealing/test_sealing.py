"""Sealed model keys: what opens, what does not, and that nothing tells the secret."""

from __future__ import annotations

import base64
import os
import resource
import stat
from pathlib import Path

import pytest

from cloudclaw.errors import InvalidArgumentError
from cloudclaw.sealing import Sealer, SealingError, write_sealing_key

SECRET = "sk-ant-very-secret-0123456789"


def key_file(directory: Path, name: str = "sealing.key") -> Path:
    path = directory / name
    write_sealing_key(path)
    return path


def test_what_was_sealed_opens_under_its_names(tmp_path: Path) -> None:
    sealer = Sealer([key_file(tmp_path)])
    sealed = sealer.seal("acme", "anthropic", SECRET)
    assert sealed.startswith("v1:")
    assert SECRET not in sealed
    assert sealer.open("acme", "anthropic", sealed) == SECRET
    assert sealer.seal("acme", "anthropic", SECRET) != sealed


def test_who_holds_keys_leaves_no_core_file(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (before[1], before[1]))
    try:
        Sealer([key_file(tmp_path)])
        assert resource.getrlimit(resource.RLIMIT_CORE)[0] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, before)


@pytest.mark.parametrize(("tenant", "upstream"), [("evil", "anthropic"), ("acme", "openai"), ("acme/anthropic", "")])
def test_it_opens_under_no_other_names(tmp_path: Path, tenant: str, upstream: str) -> None:
    sealer = Sealer([key_file(tmp_path)])
    sealed = sealer.seal("acme", "anthropic", SECRET)
    with pytest.raises(SealingError, match="does not open"):
        sealer.open(tenant, upstream, sealed)


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    sealer = Sealer([key_file(tmp_path)])
    data = bytearray(base64.b64decode(sealer.seal("acme", "openai", SECRET)[3:]))
    for index in range(len(data)):
        changed = bytearray(data)
        changed[index] ^= 1
        with pytest.raises(SealingError):
            sealer.open("acme", "openai", "v1:" + base64.b64encode(changed).decode())


@pytest.mark.parametrize("sealed", ["", "v1:", "v1:!!!!", "v1:AAAA", "v2:AAAA", SECRET, "v1:" + "A" * 40 + "\n"])
def test_nonsense_is_refused_and_not_repeated(tmp_path: Path, sealed: str) -> None:
    with pytest.raises(SealingError) as caught:
        Sealer([key_file(tmp_path)]).open("acme", "openai", sealed)
    assert not sealed or sealed not in caught.value.message


def test_the_first_key_seals_and_every_key_opens(tmp_path: Path) -> None:
    old, new = key_file(tmp_path, "old.key"), key_file(tmp_path, "new.key")
    sealed_before = Sealer([old]).seal("acme", "openai", SECRET)
    both = Sealer([new, old])
    assert both.open("acme", "openai", sealed_before) == SECRET
    sealed_after = both.seal("acme", "openai", SECRET)
    assert Sealer([new]).open("acme", "openai", sealed_after) == SECRET
    with pytest.raises(SealingError, match="does not open with any of 1"):
        Sealer([old]).open("acme", "openai", sealed_after)


def test_without_keys_it_says_what_to_set() -> None:
    sealer = Sealer([])
    with pytest.raises(SealingError, match=r"sealing\.keys"):
        sealer.seal("a", "b", SECRET)
    with pytest.raises(SealingError, match=r"sealing\.keys"):
        sealer.open("a", "b", "v1:AAAA")


@pytest.mark.parametrize("secret", ["", "has space", "line\nbreak", "sk\r\nx: y", "ключ", "x" * 4097])
def test_what_no_header_may_carry_is_no_key(tmp_path: Path, secret: str) -> None:
    with pytest.raises(InvalidArgumentError):
        Sealer([key_file(tmp_path)]).seal("acme", "openai", secret)


@pytest.mark.parametrize("content", [b"", b"abc", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff" * 32])
def test_a_file_that_holds_no_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SealingError, match=r"bad\.key: not a sealing key"):
        Sealer([path])


def test_a_key_that_everybody_may_read_is_refused(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o604)
    with pytest.raises(SealingError, match="everybody"):
        Sealer([path])
    path.chmod(0o640)
    Sealer([path])


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SealingError, match=r"absent\.key"):
        Sealer([tmp_path / "absent.key"])


def test_a_key_in_use_is_never_replaced(tmp_path: Path) -> None:
    path = key_file(tmp_path)
    before = path.read_bytes()
    with pytest.raises(SealingError, match="exists"):
        write_sealing_key(path)
    assert path.read_bytes() == before


def test_a_key_made_by_openssl_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "made.key"
    path.write_text(os.urandom(32).hex().upper() + "\n")
    path.chmod(0o600)
    Sealer([path]).seal("acme", "openai", SECRET)
