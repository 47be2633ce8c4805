"""A bundle is opened only as it was packed: nothing changed, added, missing, swapped or foreign."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bundle import Bundle, BundleFile, Manifest, open_files, pack, seal_files
from common.errors import InputError, Refused, SealError, VeilfaceError
from common.signing import fingerprint
from server.provisioning.federation import add_sites, renew
from server.provisioning.request import Passphrase, Passphrases
from tests.provisioning_rig import NOW, OPEN, archive, make, private_files

SEALED = Passphrases((Passphrase("", "a long secret"), Passphrase("ca", "the CA's own")))


@dataclass(frozen=True)
class Made:
    out: Path
    bundle: Bundle
    key: Ed25519PrivateKey

    def files(self) -> dict[str, bytes]:
        return {file.name: file.data for file in self.bundle.files}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    out = tmp_path_factory.mktemp("made") / "fed"
    make(out)
    key = load_ssh_private_key((out / "ca" / "roster.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    return Made(out, Bundle.read(archive(out, "a")), key)


def test_the_archive_and_the_unpacked_folder_are_the_same_bundle(
    made: Made, tmp_path: Path
) -> None:
    made.bundle.unpack(tmp_path / "a")
    again = Bundle.read(tmp_path / "a")
    assert {f.name: f.data for f in again.files} == made.files()
    assert again.manifest == made.bundle.manifest
    assert (again.manifest.party, again.manifest.server) == ("a", "127.0.0.1:8443")
    with tarfile.open(archive(made.out, "a")) as tar:
        tar.extractall(tmp_path, filter="data")
    assert Bundle.read(tmp_path / "fed-a").manifest == made.bundle.manifest


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_flipped_byte_of_any_file_is_caught(made: Made, data: st.DataObject) -> None:
    files = made.files()
    name = data.draw(st.sampled_from(sorted(files)))
    changed = bytearray(files[name])
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(VeilfaceError):
        _read_tar(made.out.parent, {**files, name: bytes(changed)})


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_any_damage_to_the_archive_is_harmless_or_a_named_error(
    made: Made, data: st.DataObject
) -> None:
    packed = bytearray(archive(made.out, "a").read_bytes())
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    path = made.out.parent / "damaged.tar.gz"
    path.write_bytes(packed[: data.draw(st.integers(0, len(packed)))])
    try:
        found = Bundle.read(path)
    except VeilfaceError:
        return
    assert {f.name: f.data for f in found.files} == made.files()


def test_one_file_more_or_less_is_refused(made: Made, tmp_path: Path) -> None:
    files = made.files()
    for name in files:
        with pytest.raises(Refused):
            _read_tar(tmp_path, {k: v for k, v in files.items() if k != name})
    with pytest.raises(Refused, match=r"extra\.py"):
        _read_tar(tmp_path, {**files, "extra.py": b"import os"})


def test_another_sites_keys_or_server_keys_do_not_pass_as_mine(made: Made, tmp_path: Path) -> None:
    other = {file.name: file.data for file in Bundle.read(archive(made.out, "b")).files}
    with pytest.raises(Refused, match="changed"):
        _read_tar(tmp_path, {**made.files(), "node.key": other["node.key"]})
    mine = [BundleFile(name, data) for name, data in made.files().items() if name != "manifest"]
    for party, name in (("a", "node.key"), ("a", "signing.key"), ("b", ""), ("c", "")):
        head = Manifest("fed", party, "127.0.0.1:8443", "2026-11-24T12:00:00Z", ())
        files = [BundleFile(name, other[name]) if file.name == name else file for file in mine]
        path = tmp_path / "resigned.tar.gz"
        path.write_bytes(pack(head, files, made.key))
        with pytest.raises(Refused, match="not those of"):
            Bundle.read(path)


def test_a_bundle_of_a_stranger_is_caught_by_the_fingerprint(made: Made, tmp_path: Path) -> None:
    make(tmp_path / "fed")
    mine = fingerprint(made.bundle.roster_key)
    assert Bundle.read(archive(made.out, "a"), expected=mine).manifest.party == "a"
    with pytest.raises(Refused, match="not by"):
        Bundle.read(archive(tmp_path / "fed", "a"), expected=mine)


def _read_tar(folder: Path, files: dict[str, bytes], top: str = "fed-a/") -> Bundle:
    members = [(_member(f"{top}{name}"), data) for name, data in files.items()]
    return _read_members(folder, members)


def _read_members(folder: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> Bundle:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    path = folder / "forged.tar.gz"
    path.write_bytes(packed.getvalue())
    return Bundle.read(path)


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.parametrize(
    "member",
    [
        _member("fed-a/../../evil"),
        _member("/etc/evil"),
        _member("other/evil"),
        _member("evil"),
        _member("fed-a/sub/evil"),
        _member("fed-a/.hidden"),
        _member("fed-a/Evil"),
        _member("fed-a/link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("fed-a/hard", tarfile.LNKTYPE, "fed-a/node.key"),
        _member("fed-a/pipe", tarfile.FIFOTYPE),
        _member("fed-a/device", tarfile.CHRTYPE),
        _member("fed-a/node.key"),
    ],
    ids=lambda member: str(member.name),
)
def test_a_forged_archive_writes_nothing_and_is_refused(
    member: tarfile.TarInfo, made: Made, tmp_path: Path
) -> None:
    honest = [(_member(f"fed-a/{name}"), data) for name, data in made.files().items()]
    with pytest.raises(Refused):
        _read_members(tmp_path, [*honest, (member, b"")])
    assert [path.name for path in tmp_path.iterdir()] == ["forged.tar.gz"]


def test_a_file_that_is_there_twice_or_in_another_folder_is_refused(
    made: Made, tmp_path: Path
) -> None:
    honest = [(_member(f"fed-a/{name}"), data) for name, data in made.files().items()]
    for name in made.files():
        with pytest.raises(Refused):
            _read_members(tmp_path, [(_member(f"fed-a/{name}"), b"evil"), *honest])
    with pytest.raises(Refused, match="twice"):
        _read_members(tmp_path, [honest[0], *honest])
    for top in ("other/", "../", "fed-a/../", "/"):
        moved = [(_member(m.name.replace("fed-a/", top)), data) for m, data in honest[:1]]
        with pytest.raises(Refused):
            _read_members(tmp_path, [*moved, *honest[1:]])


def test_a_zip_bomb_and_what_is_no_archive_are_named_errors(tmp_path: Path) -> None:
    path = tmp_path / "odd.tar.gz"
    path.write_bytes(gzip.compress(bytes(64 << 20)))
    with pytest.raises(Refused, match="larger"):
        Bundle.read(path)
    for content in (b"", b"no archive", gzip.compress(b"no tar" * 200), gzip.compress(b"")):
        path.write_bytes(content)
        with pytest.raises(VeilfaceError):
            Bundle.read(path)
    with pytest.raises(InputError, match="cannot read"):
        Bundle.read(tmp_path / "missing")


def _add(path: Path) -> None:
    (path / "note.txt").write_text("mine")


def _link(path: Path) -> None:
    (path / "node.key").rename(path.parent / "elsewhere")
    (path / "node.key").symlink_to(path.parent / "elsewhere")


ATTACKS: list[tuple[str, Callable[[Path], object], str]] = [
    ("a key open to the group", lambda p: (p / "node.key").chmod(0o640), "chmod 600"),
    ("a file more", _add, "note.txt"),
    ("a folder more", lambda p: (p / "sub").mkdir(), "does not belong"),
    ("a link for a key", _link, "does not belong"),
    ("a pipe", lambda p: os.mkfifo(p / "pipe"), "does not belong"),
    ("no manifest", lambda p: (p / "manifest").unlink(), "manifest"),
    ("no roster key", lambda p: (p / "roster.pub").unlink(), "roster.pub"),
]


@pytest.mark.parametrize(("what", "attack", "said"), ATTACKS, ids=[a[0] for a in ATTACKS])
def test_a_folder_that_was_touched_is_refused(
    what: str, attack: Callable[[Path], object], said: str, made: Made, tmp_path: Path
) -> None:
    made.bundle.unpack(tmp_path / "a")
    attack(tmp_path / "a")
    with pytest.raises(Refused, match=said):
        Bundle.read(tmp_path / "a")


def test_sealed_bundles_hold_no_key_in_the_clear_and_open_with_their_passphrase(
    tmp_path: Path,
) -> None:
    out = tmp_path / "fed"
    make(out, passphrases=SEALED)
    assert private_files(out) == {}, "the CA's keys are sealed too"
    add_sites(out, ("c",), SEALED, now=NOW)
    renew(out, SEALED, force=True, now=NOW)
    for party in ("server", "a", "b", "c"):
        assert b"PRIVATE KEY" not in gzip.decompress(archive(out, party).read_bytes())
        bundle = Bundle.read(archive(out, party))
        assert bundle.sealed
        with pytest.raises(InputError, match="sealed"):
            bundle.write_keys(tmp_path / "keys")
        for wrong in ("a long secret ", "the CA's own"):
            with pytest.raises(SealError):
                bundle.unlocked(wrong)
        bundle.unlocked("a long secret").write_keys(tmp_path / "keys" / party)
        found = private_files(tmp_path / "keys" / party)
        assert set(found) == ({"server.key"} if party == "server" else {"node.key", "signing.key"})
        bundle.unpack(tmp_path / party)
        assert Bundle.read(tmp_path / party).sealed


def test_a_sealed_federation_never_falls_back_to_keys_in_the_clear(tmp_path: Path) -> None:
    out = tmp_path / "fed"
    make(out, passphrases=SEALED)
    only_ca = Passphrases((Passphrase("ca", "the CA's own"),))
    wrong = Passphrases((Passphrase("ca", "a long secret"), Passphrase("", "a long secret")))
    for passphrases, error in ((OPEN, InputError), (only_ca, InputError), (wrong, SealError)):
        before = archive(out, "server").read_bytes()
        with pytest.raises(error):
            add_sites(out, ("c",), passphrases, now=NOW)
        with pytest.raises(error):
            renew(out, passphrases, force=True, now=NOW)
        assert archive(out, "server").read_bytes() == before
        assert not archive(out, "c").exists()
    half = Passphrases((Passphrase("a", "x"), Passphrase("server", "y")))
    with pytest.raises(InputError, match="b has no passphrase"):
        make(tmp_path / "half", passphrases=half)
    assert not (tmp_path / "half").exists()


def test_the_passphrase_of_the_bundles_never_seals_or_opens_the_ca(tmp_path: Path) -> None:
    bundles = Passphrases((Passphrase("", "a long secret"),))
    make(tmp_path / "open", passphrases=bundles)
    assert set(private_files(tmp_path / "open")) == {"ca.key", "roster.key"}
    make(tmp_path / "sealed", passphrases=SEALED)
    with pytest.raises(InputError, match="ca=FILE"):
        add_sites(tmp_path / "sealed", ("c",), bundles, now=NOW)


def test_sealed_keys_open_only_where_they_belong() -> None:
    sealed = seal_files([BundleFile("node.key", b"secret")], "pass", "fed/a")
    assert open_files(sealed, "pass", "fed/a") == (BundleFile("node.key", b"secret"),)
    for changed in (sealed[:-1], sealed[:-1] + b"?", sealed[:40], b"\xff\xff", b""):
        with pytest.raises(SealError):
            open_files(changed, "pass", "fed/a")
    for context in ("fed/b", "other/a", "fed/ca"):
        with pytest.raises(SealError):
            open_files(sealed, "pass", context)
