"""Layers and archives are the same bytes for the same content, and hold nothing that they must not."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import tarfile
from pathlib import Path

import pytest

from clsecure.errors import ImageError
from clsecure.images.archive import configuration, image_id, read_archive, write_archive
from clsecure.images.layers import base_layer, files_layer, npm_layer
from clsecure.images.recipe import Kind, LayerFile, LayerRecipe

EPOCH = 1_700_000_000


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mode, info.uid, info.gid, info.uname, info.mtime = 0o644, 1000, 1000, "somebody", EPOCH + 500
    for field, value in fields.items():
        setattr(info, field, value)
    return info


ROOT = (
    (entry("./", tarfile.DIRTYPE, mode=0o700), b""),
    (entry("./usr/bin/su", mode=0o6755), b"su"),
    (entry("./usr/bin/ping", mode=0o755, pax_headers={"SCHILY.xattr.security.capability": "x"}), b"ping"),
    (entry("./usr/lib/secret", mode=0o600, mtime=EPOCH - 7), b"private"),
    (entry("./usr/lib/writable", mode=0o666), b"w"),
    (entry("./usr/bin/perl", mode=0o755), b"perl"),
    (entry("./usr/bin/perl5", tarfile.LNKTYPE, linkname="./usr/bin/perl"), b""),
    (entry("./usr/bin/aperl", tarfile.LNKTYPE, linkname="./usr/bin/perl"), b""),
    (entry("./usr/share/man/man1/x.1", mode=0o755), b"page"),
    (entry("./usr/share/zpage", tarfile.LNKTYPE, linkname="./usr/share/man/man1/x.1"), b""),
    (entry("./usr/share/doc/x/copyright"), b"licence"),
    (entry("./usr/share/doc/x/changelog.gz"), b"changes"),
    (entry("./usr/bin/sh", tarfile.SYMTYPE, linkname="dash", mode=0o777), b""),
    (entry("./dev/null", tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
    (entry("./usr/lib/disk", tarfile.BLKTYPE, devmajor=8), b""),
    (entry("./usr/lib/pipe", tarfile.FIFOTYPE), b""),
    (entry("./etc/shadow", mode=0o640), b"root:*:1::::::"),
    (entry("./etc/passwd-"), b"old"),
    (entry("./etc/machine-id"), b"0123"),
    (entry("./etc/resolv.conf"), b"nameserver 10.0.0.1"),
    (entry("./etc/apt/sources.list"), b"deb http://mirror"),
    (entry("./var/cache/ldconfig/aux-cache"), b"cache"),
    (entry("./var/log/dpkg.log"), b"log"),
    (entry("./var/lib/apt/lists/x"), b"list"),
    (entry("./var/lib/dpkg/status"), b"status"),
    (entry("./var/lib/dpkg/status-old"), b"old"),
    (entry("./root/.bash_history"), b"history"),
    (entry("./tmp", tarfile.DIRTYPE, mode=0o1777), b""),
    (entry("./opt", tarfile.DIRTYPE, mode=0o2775), b""),
)


def write_root(path: Path, *, seed: int | None = None, later: int = 0, owner: int = 1000) -> Path:
    """Write the root as some build would: in another order, at another time, by another account."""
    firsts = [pair for pair in ROOT if pair[0].type != tarfile.LNKTYPE]
    links = [pair for pair in ROOT if pair[0].type == tarfile.LNKTYPE]
    if seed is not None:
        random.Random(seed).shuffle(firsts)
        random.Random(seed).shuffle(links)
    with tarfile.open(path, "x:", format=tarfile.PAX_FORMAT) as tar:
        for original, data in (*firsts, *links):
            info = copy.copy(original)
            info.size, info.uid, info.gid = len(data), owner, owner
            info.mtime += later if info.mtime > EPOCH else 0
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def base(tmp_path: Path) -> dict[str, tarfile.TarInfo]:
    base_layer(write_root(tmp_path / "root.tar"), tmp_path / "base.tar", epoch=EPOCH)
    with tarfile.open(tmp_path / "base.tar", "r:") as tar:
        return {member.name: member for member in tar}


def content(path: Path, name: str) -> bytes:
    with tarfile.open(path, "r:") as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def test_order_time_and_owner_of_the_build_leave_no_trace(tmp_path: Path) -> None:
    one = base_layer(write_root(tmp_path / "1"), tmp_path / "1.tar", epoch=EPOCH)
    other = base_layer(write_root(tmp_path / "2", seed=7, later=99, owner=0), tmp_path / "2.tar", epoch=EPOCH)
    assert one.diff_id == other.diff_id
    assert (tmp_path / "1.tar").read_bytes() == (tmp_path / "2.tar").read_bytes()
    assert one.diff_id == f"sha256:{hashlib.sha256((tmp_path / '1.tar').read_bytes()).hexdigest()}"


def test_i3_no_file_is_setuid_a_device_or_has_attributes(base: dict[str, tarfile.TarInfo]) -> None:
    assert {"usr/bin/su", "usr/bin/ping"} <= set(base)
    for name, member in base.items():
        assert member.mode & 0o6000 == 0, name
        assert member.isreg() or member.isdir() or member.issym() or member.islnk(), name
        assert member.pax_headers == {}, name
        assert (member.uid, member.gid, member.uname, member.gname) == (0, 0, "", ""), name
        assert member.mtime <= EPOCH, name
    assert base["usr/lib/secret"].mtime == EPOCH - 7


def test_everybody_may_read_and_nobody_else_may_write(base: dict[str, tarfile.TarInfo]) -> None:
    for name, member in base.items():
        if member.issym() or member.islnk():
            continue
        assert member.mode & 0o444 == 0o444, name
        assert not member.isdir() or member.mode & 0o111 == 0o111, name
        assert member.mode & 0o022 == 0 or member.mode == 0o1777, name
    assert base["tmp"].mode == 0o1777


@pytest.mark.parametrize(
    "name",
    [
        "etc/shadow", "etc/passwd-", "etc/apt/sources.list", "var/cache/ldconfig/aux-cache",
        "var/log/dpkg.log", "var/lib/apt/lists/x", "var/lib/dpkg/status-old", "root/.bash_history",
        "dev/null", "usr/lib/disk", "usr/lib/pipe", "usr/share/doc/x/changelog.gz",
        "usr/share/man/man1/x.1",
    ],
)  # fmt: skip
def test_what_an_image_must_not_hold_is_not_there(base: dict[str, tarfile.TarInfo], name: str) -> None:
    assert name not in base


def test_licences_and_the_list_of_packages_stay(base: dict[str, tarfile.TarInfo]) -> None:
    assert {"usr/share/doc/x/copyright", "var/lib/dpkg/status"} <= set(base)


def test_what_sessions_mount_over_is_there_and_empty(
    base: dict[str, tarfile.TarInfo], tmp_path: Path
) -> None:
    for name in (
        "home",
        "mnt",
        "srv",
        "opt/clsecure/bin",
        "opt/clsecure/lib",
        "opt/clsecure/etc",
        "workspace",
    ):
        assert base[name].isdir(), name
    for name in ("etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/machine-id", "run/.containerenv"):
        assert base[name].isreg(), name
        assert base[name].size == 0, name
    assert base["etc/mtab"].issym()


def test_the_names_of_one_file_stay_one_file_in_whatever_order_they_come(
    base: dict[str, tarfile.TarInfo], tmp_path: Path
) -> None:
    assert base["usr/bin/aperl"].isreg()
    assert base["usr/bin/aperl"].mode == 0o755
    assert {base["usr/bin/perl"].linkname, base["usr/bin/perl5"].linkname} == {"usr/bin/aperl"}
    assert content(tmp_path / "base.tar", "usr/bin/perl5") == b"perl"


def test_another_name_of_a_file_that_is_left_out_keeps_the_content(
    base: dict[str, tarfile.TarInfo], tmp_path: Path
) -> None:
    assert base["usr/share/zpage"].isreg()
    assert content(tmp_path / "base.tar", "usr/share/zpage") == b"page"


def test_a_root_that_leads_out_of_itself_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "root.tar", "x:") as tar:
        tar.addfile(entry("./usr/../../etc/passwd"))
    with pytest.raises(ImageError, match="leads out"):
        base_layer(tmp_path / "root.tar", tmp_path / "base.tar", epoch=EPOCH)


def npm_archive(path: Path, files: dict[str, tuple[bytes, int]]) -> Path:
    with tarfile.open(path, "x:gz") as tar:
        for name, (data, mode) in files.items():
            tar.addfile(entry(name, size=len(data), mode=mode), io.BytesIO(data))
    return path


def recipe(*files: LayerFile) -> LayerRecipe:
    return LayerRecipe(
        name="claude", kind=Kind.AGENT, version="1", packages={}, files=files, links={"usr/bin/c": "../c"}
    )


def test_i6_an_agent_is_roots_and_nobody_may_write_it(tmp_path: Path) -> None:
    archive = npm_archive(
        tmp_path / "a.tgz", {"package/claude": (b"ELF", 0o777), "package/x.js": (b"", 0o644)}
    )
    wanted = LayerFile(source="package/claude", target="opt/clsecure/bin/claude", executable=True)
    npm_layer(recipe(wanted), archive, tmp_path / "l.tar", epoch=EPOCH)
    with tarfile.open(tmp_path / "l.tar", "r:") as tar:
        found = {member.name: member for member in tar}
    program = found["opt/clsecure/bin/claude"]
    assert (program.mode, program.uid, program.gid) == (0o555, 0, 0)
    assert set(found) == {
        "opt", "opt/clsecure", "opt/clsecure/bin", "opt/clsecure/bin/claude", "usr", "usr/bin", "usr/bin/c",
    }  # fmt: skip


def test_a_whole_package_is_taken_with_its_programs_executable(tmp_path: Path) -> None:
    archive = npm_archive(
        tmp_path / "a.tgz", {"package/bin/npm": (b"#!", 0o755), "package/lib/x.js": (b"", 0o666)}
    )
    npm_layer(
        recipe(LayerFile(source="package/", target="usr/lib/npm/")), archive, tmp_path / "l.tar", epoch=EPOCH
    )
    with tarfile.open(tmp_path / "l.tar", "r:") as tar:
        assert tar.getmember("usr/lib/npm/bin/npm").mode == 0o555
        assert tar.getmember("usr/lib/npm/lib/x.js").mode == 0o444


def test_a_package_without_the_program_is_an_error_that_names_it(tmp_path: Path) -> None:
    archive = npm_archive(tmp_path / "a.tgz", {"package/other": (b"", 0o755)})
    with pytest.raises(ImageError, match="no package/claude in the package of claude"):
        npm_layer(
            recipe(LayerFile(source="package/claude", target="opt/claude")), archive, tmp_path / "l", epoch=0
        )


@pytest.fixture
def archived(tmp_path: Path) -> tuple[Path, str]:
    layers = [files_layer(name, {"usr/x": name.encode()}, tmp_path / name, epoch=EPOCH) for name in "ab"]
    config = configuration(
        layers, architecture="amd64", epoch=EPOCH, environment={"A": "1"}, labels={"clsecure.image": "w"}
    )
    for name in ("1.tar", "2.tar"):
        write_archive(tmp_path / name, name="w", config=config, layers=layers)
    return tmp_path, image_id(config)


def test_an_archive_is_the_same_bytes_each_time(archived: tuple[Path, str]) -> None:
    place, _ = archived
    assert (place / "1.tar").read_bytes() == (place / "2.tar").read_bytes()


def test_i2_the_id_is_the_hash_of_a_configuration_that_names_each_layer_by_hash(
    archived: tuple[Path, str],
) -> None:
    place, image = archived
    said = read_archive(place / "1.tar")
    assert said.image == image
    assert said.labels == {"clsecure.image": "w"}
    with tarfile.open(place / "1.tar", "r:") as tar:
        config = json.loads(tar.extractfile(f"{image.removeprefix('sha256:')}.json").read())  # type: ignore[union-attr]
        for diff_id in config["rootfs"]["diff_ids"]:
            layer = tar.extractfile(f"{diff_id.removeprefix('sha256:')}.tar")
            assert layer is not None
            assert f"sha256:{hashlib.sha256(layer.read()).hexdigest()}" == diff_id


@pytest.mark.parametrize("data", [b"", b"no archive", b"\0" * 10240])
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(ImageError, match="is no image archive"):
        read_archive(tmp_path / "x.tar")


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_i2_a_header_as_long_as_a_disk_is_not_read(tmp_path: Path, kind: bytes) -> None:
    """A terabyte that takes no room: it must not come into memory."""
    header = tarfile.TarInfo("x")
    header.type, header.size = kind, 1 << 40
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(1 << 40)
    with pytest.raises(ImageError, match="is no image archive"):
        read_archive(tmp_path / "x.tar")


def test_i2_an_archive_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "x:") as tar:
        for number in range(5000):
            tar.addfile(entry(f"{number}"))
        data = json.dumps([{"Config": "manifest.json"}]).encode()
        tar.addfile(entry("manifest.json", size=len(data)), io.BytesIO(data))
    with pytest.raises(ImageError) as refused:
        read_archive(tmp_path / "x.tar")
    assert "there is no 'manifest.json'" in (refused.value.details or "")


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'[{"Config": []}]', b'[{"Config": "manifest.json"}]', b"[7]"]
)
def test_i2_hostile_words_of_an_archive_are_refused(tmp_path: Path, data: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "x:") as tar:
        tar.addfile(entry("manifest.json", size=len(data)), io.BytesIO(data))
    with pytest.raises(ImageError, match="is no image archive"):
        read_archive(tmp_path / "x.tar")


def test_an_archive_of_two_images_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "x:") as tar:
        data = json.dumps([{"Config": "a.json"}, {"Config": "b.json"}]).encode()
        tar.addfile(entry("manifest.json", size=len(data)), io.BytesIO(data))
    with pytest.raises(ImageError, match="exactly one image"):
        read_archive(tmp_path / "x.tar")
