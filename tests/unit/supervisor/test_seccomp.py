"""The filter as data, for both machines, run by a small interpreter of classic BPF."""

from __future__ import annotations

import errno
import struct

import pytest

from cloudclaw_supervisor import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
MACHINES = sorted(ARCH)


def verdict(program: bytes, machine: str, number: int, *arguments: int) -> object:
    """What the kernel would answer."""
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, ARCH[machine], 0, *[*arguments, *[0] * 6][:6])
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at, accumulator = 0, 0
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op in (0x15, 0x35):
            at += yes if (accumulator == k if op == 0x15 else accumulator >= k) else no
        else:
            assert op == 0x06
            return k


def fails(number: int) -> int:
    return 0x00050000 | number


@pytest.mark.parametrize("machine", MACHINES)
def test_ordinary_calls_are_allowed(machine: str) -> None:
    program = seccomp.program(machine)
    named = set(seccomp.numbers(machine).values())
    others = [number for number in range(500) if number not in named]
    assert {verdict(program, machine, number) for number in others} == {ALLOW}


@pytest.mark.parametrize("machine", MACHINES)
def test_named_calls_get_their_answer(machine: str) -> None:
    program, numbers = seccomp.program(machine), seccomp.numbers(machine)
    for name, number in numbers.items():
        if name in ("clone", "socket", "socketpair"):
            continue
        absent = name.startswith("io_uring") or name == "clone3"
        assert verdict(program, machine, number) == fails(errno.ENOSYS if absent else errno.EPERM), name


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_is_judged_by_its_flags(machine: str) -> None:
    program, clone = seccomp.program(machine), seccomp.numbers(machine)["clone"]
    assert verdict(program, machine, clone, 0x3D0F00) == ALLOW  # a thread
    assert verdict(program, machine, clone, 17) == ALLOW  # a fork
    for bit in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(program, machine, clone, bit | 17) == fails(errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("call", ["socket", "socketpair"])
def test_sockets_are_judged_by_family_and_protocol(machine: str, call: str) -> None:
    program, number = seccomp.program(machine), seccomp.numbers(machine)[call]
    allowed = {family for family in range(64) if verdict(program, machine, number, family, 2, 0) == ALLOW}
    assert allowed == {1, 2, 10, 16}
    assert verdict(program, machine, number, 16, 3, 9) == fails(errno.EAFNOSUPPORT)


@pytest.mark.parametrize("machine", MACHINES)
def test_a_call_of_another_architecture_kills(machine: str) -> None:
    other = next(name for name in MACHINES if name != machine)
    assert verdict(seccomp.program(machine), other, 0) == KILL


def test_x32_numbers_look_absent() -> None:
    assert verdict(seccomp.program("x86_64"), "x86_64", 0x40000000 | 272) == fails(errno.ENOSYS)


def test_tracing_is_an_option() -> None:
    numbers = seccomp.numbers("x86_64")
    program = seccomp.program("x86_64", allow_tracing=True)
    assert verdict(program, "x86_64", numbers["ptrace"]) == ALLOW
    assert verdict(program, "x86_64", numbers["bpf"]) == fails(errno.EPERM)


def test_an_unknown_machine_has_no_filter() -> None:
    with pytest.raises(KeyError):
        seccomp.program("sparc")
