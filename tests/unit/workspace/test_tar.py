"""Reading tar streams strictly, and writing them so that everybody reads them."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudclaw.errors import InvalidArgumentError
from cloudclaw_workspace.domain.tar import END, MAX_HEADER, Kind, Member, TarReader, header, padding
from tests.support.trees import TAR_END, pax, tar_header, tar_member

NAME = st.binary(min_size=1, max_size=300).filter(
    lambda n: b"\0" not in n and not n.startswith(b"/") and not n.endswith(b"/")
)


def read(data: bytes, *, at_once: int = 1 << 20) -> list[tuple[Member, bytes]]:
    source = io.BytesIO(data)
    reader = TarReader(lambda size: source.read(min(size, at_once)))
    return [(member, b"".join(reader.content())) for member in reader]


@given(
    st.lists(
        st.tuples(NAME, st.sampled_from(list(Kind)), st.binary(max_size=1500), st.integers(0, 2**37 * 10**9), NAME),
        max_size=5,
    )
)
def test_what_is_written_is_read_back(members: list[tuple[bytes, Kind, bytes, int, bytes]]) -> None:
    wanted = []
    stream = b""
    for name, kind, data, mtime_ns, target in members:
        content = data if kind is Kind.FILE else b""
        link = target if kind in (Kind.SYMLINK, Kind.HARD_LINK) else b""
        member = Member(name, kind, len(content), 0o640, mtime_ns, link)
        stream += header(member) + content + padding(len(content))
        wanted.append((member, content))
    found = [
        (Member(m.path.removesuffix(b"/"), m.kind, m.size, m.mode, m.mtime_ns, m.link), data)
        for m, data in read(stream + END, at_once=100)
    ]
    assert found == wanted


@pytest.mark.parametrize("flavour", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_archives_of_the_usual_writers_are_read(flavour: int) -> None:
    output = io.BytesIO()
    with tarfile.open(fileobj=output, mode="w", format=flavour) as archive:
        for name in ("short", "d" * 90 + "/" + "n" * 200, "ünicode"):
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = 3, 0o755, 1_700_000_000
            archive.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "t" * 150
        archive.addfile(link)
        folder = tarfile.TarInfo("folder")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(folder)
    found = read(output.getvalue())
    assert [(m.path.rstrip(b"/"), m.kind) for m, _ in found] == [
        (b"short", Kind.FILE),
        (b"d" * 90 + b"/" + b"n" * 200, Kind.FILE),
        ("ünicode".encode(), Kind.FILE),
        (b"link", Kind.SYMLINK),
        (b"folder", Kind.DIRECTORY),
    ]
    assert found[3][0].link == b"t" * 150
    assert found[0] == (Member(b"short", Kind.FILE, 3, 0o755, 1_700_000_000 * 10**9, b""), b"abc")


def test_the_standard_library_reads_what_is_written() -> None:
    members = [
        (Member(b"caf\xe9", Kind.FILE, 2, 0o600, 5 * 10**9 + 123456789, b""), b"hi"),
        (Member(b"n" * 300, Kind.DIRECTORY, 0, 0o755, 0, b""), b""),
        (Member(b"link", Kind.SYMLINK, 0, 0o777, 0, b"../" * 50), b""),
    ]
    stream = b"".join(header(m) + data + padding(len(data)) for m, data in members) + END
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        found = archive.getmembers()
    assert [f.name.encode("utf-8", "surrogateescape") for f in found] == [b"caf\xe9", b"n" * 300, b"link"]
    assert (found[0].mode, round(found[0].mtime, 3), found[2].linkname) == (0o600, 5.123, "../" * 50)


def test_a_stream_cut_anywhere_is_refused() -> None:
    whole = tar_member(b"a", b"x" * 700) + tar_member(b"b", b"y") + TAR_END
    for end in (*range(0, len(whole) - 1024, 97), 512 + 1024, len(whole) - 1024, len(whole) - 1000):
        with pytest.raises(InvalidArgumentError):
            read(whole[:end])
    assert len(read(whole)) == 2
    assert len(read(whole[:-512])) == 2


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        (b"3", "device"),
        (b"4", "device"),
        (b"6", "FIFO"),
        (b"S", "sparse"),
        (b"V", "label"),
        (b"M", "volume"),
        (b"Z", "unknown"),
    ],
)
def test_what_is_no_file_is_refused_by_name(flag: bytes, what: str) -> None:
    with pytest.raises(InvalidArgumentError, match=f"'strange'.*{what}"):
        read(tar_member(b"strange", flag=flag) + TAR_END)


@pytest.mark.parametrize("key", [b"GNU.sparse.major", b"GNU.sparse.map", b"GNU.sparse.realsize"])
def test_pax_sparse_files_are_refused(key: bytes) -> None:
    with pytest.raises(InvalidArgumentError, match="sparse"):
        read(pax({key: b"1"}) + tar_member(b"bomb", b"x") + TAR_END)


@pytest.mark.parametrize("flag", [b"x", b"g", b"L", b"K"])
def test_an_extension_header_that_claims_gigabytes_is_refused_unread(flag: bytes) -> None:
    taken = 0
    head = io.BytesIO(tar_header(b"pax", flag, MAX_HEADER + 1))

    def endless(size: int) -> bytes:
        nonlocal taken
        data = head.read(size) or bytes(size)
        taken += len(data)
        return data

    with pytest.raises(InvalidArgumentError, match="extension header"):
        list(TarReader(endless))
    assert taken <= 512


def test_a_chain_of_extension_headers_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="more than"):
        read(pax({b"comment": b"x"}) * 2000 + tar_member(b"a") + TAR_END)


@pytest.mark.parametrize(
    "body",
    [
        b"99 path=x\n",
        b"path=x\n",
        b"-5 path=x\n",
        b"9 path=x",
        b"0 =\n",
        b"7 path\n\n",
        b"999999999999 path=x\n",
        b"5 a=b\n",
    ],
)
def test_broken_pax_records_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        read(tar_member(b"pax", body, b"x") + tar_member(b"a") + TAR_END)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"-0000000001\0", b"9999999999\0\0", b"0x000000010\0"])
def test_sizes_that_are_none_are_refused(size: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        read(tar_header(b"a", size_field=size) + TAR_END)


def test_a_base_256_size_is_read() -> None:
    size = b"\x80" + (3).to_bytes(11, "big")
    found = read(tar_header(b"a", size_field=size) + b"abc" + bytes(509) + TAR_END)
    assert found[0][1] == b"abc"


def test_the_size_in_a_pax_header_is_the_one_that_counts() -> None:
    found = read(pax({b"size": b"3"}) + tar_header(b"a", size=0) + b"abc" + bytes(509) + tar_member(b"b") + TAR_END)
    assert [(m.path, data) for m, data in found] == [(b"a", b"abc"), (b"b", b"")]


def test_a_wrong_checksum_is_refused() -> None:
    block = bytearray(tar_header(b"a"))
    block[0] ^= 1
    with pytest.raises(InvalidArgumentError, match="checksum"):
        read(bytes(block) + TAR_END)


def test_what_is_no_tar_is_refused() -> None:
    for junk in (b"hello", b"x" * 5000, b"\x7fELF" + bytes(2000)):
        with pytest.raises(InvalidArgumentError):
            read(junk)


@pytest.mark.parametrize("mtime", [b"1e99", b"nan", b"99999999999999999999", b"1.x", b"1.-5"])
def test_times_that_are_none_are_refused(mtime: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        read(pax({b"mtime": mtime}) + tar_member(b"a") + TAR_END)


@pytest.mark.parametrize(
    ("mtime", "wanted"), [(b"-5", 0), (b"9999999999999", 253_402_300_799 * 10**9), (b"1.5", 1_500_000_000)]
)
def test_times_are_kept_within_reason(mtime: bytes, wanted: int) -> None:
    assert read(pax({b"mtime": mtime}) + tar_member(b"a") + TAR_END)[0][0].mtime_ns == wanted


@given(st.binary(max_size=3000))
def test_no_bytes_at_all_break_the_reader(junk: bytes) -> None:
    for data in (junk, tar_member(b"pax", junk[:600], b"x") + tar_member(b"a") + TAR_END):
        try:
            read(data)
        except InvalidArgumentError:
            continue
