"""Worker images for real: built twice, loaded into real engines, run, saved and pruned."""

from __future__ import annotations

import contextlib
import dataclasses
import filecmp
import hashlib
import json
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.errors import BackendUnavailableError, ImageError
from clsecure.images.archive import read_archive
from clsecure.images.docker_store import DockerStore
from clsecure.images.fetch import Sources, fetch_npm, fetch_packages
from clsecure.images.lock import Lock, read_lock
from clsecure.images.podman_store import PodmanStore
from clsecure.images.reference import image_reference, machine_architecture
from clsecure.images.store import ImageStore, load_checked, ours
from tests.support import schema, sweep
from tests.support.built_images import RUN, Image, built_image, give_packages, small_archive, sources
from tests.support.engines import docker_engine, podman_service
from tests.support.leftovers import wait_until
from tests.support.person import SYSTEM_PATH, Person, make_person

# One process for all of them: the engines are started once.
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("images")]

_SECRET = re.compile(
    rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----\n[A-Za-z0-9+/=\n]{200}"
    rb"|sk-ant-[A-Za-z0-9_-]{20}|ghp_[A-Za-z0-9]{36}"
)


@pytest.fixture(scope="session")
def minimal() -> Iterator[Image]:
    with built_image("worker-minimal") as image:
        yield image


@pytest.fixture(scope="session")
def worker() -> Iterator[Image]:
    with built_image("worker") as image:
        yield image


@pytest.fixture(scope="module")
def plain(worker_id: str) -> Iterator[Person]:
    """A plain account. No session is started here, so it needs none of the root-owned pieces."""
    name = f"{RUN}-{worker_id}-images"
    try:
        yield make_person(name, ())
    finally:
        sweep.remove_person(name)


@pytest.fixture(scope="module")
def docker() -> Iterator[str]:
    with docker_engine() as address:
        yield address


@pytest.fixture(scope="module")
def podman() -> Iterator[str]:
    with podman_service() as address:
        yield address


@pytest.fixture(params=["podman", "docker"])
def store(request: pytest.FixtureRequest) -> Iterator[ImageStore]:
    address = request.getfixturevalue(request.param)
    made = DockerStore(address) if request.param == "docker" else PodmanStore(lambda: opened(address))
    yield made
    for image in ours(made.ids()):
        made.remove(image)


@contextlib.contextmanager
def opened(address: str) -> Iterator[str]:
    yield address


def quiet(_: str) -> None:
    pass


def members(image: Image) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    """Yield every entry of every layer, with the layer's name."""
    names = {layer.diff_id: layer.name for layer in image.lock.outcome.layers}
    with tarfile.open(image.archive, "r:") as archive:
        for layer in archive:
            name = names.get(f"sha256:{layer.name.removesuffix('.tar')}")
            if name is not None:
                with tarfile.open(fileobj=archive.extractfile(layer), mode="r:") as tar:
                    for member in tar:
                        yield name, member, tar


# ------------------------------------------------------------ locks


@pytest.mark.parametrize("name", ["minimal", "worker"])
def test_the_mirror_still_has_every_locked_version(request: pytest.FixtureRequest, name: str) -> None:
    image: Image = request.getfixturevalue(name)
    if image.afresh:
        pytest.skip(f"LOCKED AFRESH for these tests, run ./dev invoke lock-images: {image.afresh}")
    assert image.image == image_reference(image.name).image


def doctored(tmp_path: Path, **changes: str) -> tuple[Lock, Sources]:
    """Return a lock of tini alone, changed, and an empty cache."""
    lock = read_lock("worker-minimal", machine_architecture())
    tini = next(package for package in lock.inputs.packages if package.name == "tini")
    inputs = dataclasses.replace(lock.inputs, packages=(dataclasses.replace(tini, **changes),))
    return dataclasses.replace(lock, inputs=inputs), dataclasses.replace(sources(), cache=tmp_path)


def test_a_version_that_the_mirror_lacks_is_named_with_what_to_do(tmp_path: Path) -> None:
    lock, empty = doctored(tmp_path, version="0.1-1")
    with pytest.raises(ImageError, match=r"does not have tini=0\.1-1") as raised:
        fetch_packages(lock, empty, suite="trixie", progress=quiet)
    assert "image_mirror" in (raised.value.resolution or "")
    assert "lock-images --image worker-minimal" in (raised.value.resolution or "")


def test_a_package_with_another_hash_than_the_locks_is_refused_and_not_kept(tmp_path: Path) -> None:
    lock, empty = doctored(tmp_path, sha256="0" * 64)
    with pytest.raises(ImageError, match="is not the file that the lock names"):
        fetch_packages(lock, empty, suite="trixie", progress=quiet)
    assert list((tmp_path / "packages").iterdir()) == []


def test_a_package_of_the_cache_that_was_tampered_with_is_fetched_again(tmp_path: Path) -> None:
    lock, empty = doctored(tmp_path)
    (package,) = lock.inputs.packages
    file = tmp_path / "packages" / f"{package.sha256}.deb"
    file.parent.mkdir()
    file.write_bytes(b"tampered")
    assert fetch_packages(lock, empty, suite="trixie", progress=quiet) == {package: file}
    assert hashlib.sha256(file.read_bytes()).hexdigest() == package.sha256


def test_a_mirror_that_debian_did_not_sign_is_refused(tmp_path: Path) -> None:
    mirror = tmp_path / "debian"
    (mirror / "dists/trixie/main/binary-amd64").mkdir(parents=True)
    (mirror / "dists/trixie/main/binary-amd64/Packages").write_text("")
    (mirror / "dists/trixie/Release").write_text("Suite: trixie\nComponents: main\n")
    lock, _ = doctored(tmp_path)
    unsigned = Sources(cache=tmp_path / "cache", mirror=f"file:{mirror}")
    with pytest.raises(BackendUnavailableError, match="can't be fetched"):
        fetch_packages(lock, unsigned, suite="trixie", progress=quiet)


def test_an_agent_with_another_hash_than_the_locks_is_refused_and_not_kept(tmp_path: Path) -> None:
    tool = next(
        each for each in read_lock("worker", machine_architecture()).inputs.npm if each.layer == "npm"
    )
    other = dataclasses.replace(tool, integrity=f"sha512-{'A' * 86}==")
    with pytest.raises(ImageError, match="is not what the lock names"):
        fetch_npm(other, Sources(cache=tmp_path), progress=quiet)
    assert list((tmp_path / "npm").iterdir()) == []


# ------------------------------------------------------------ what comes out


def test_two_builds_are_one_image_also_by_a_plain_user(minimal, plain) -> None:
    """Root's build and that of a plain user, by the command line."""
    give_packages(plain, minimal)
    if shutil.which("newuidmap", path=SYSTEM_PATH) is None:
        pytest.skip("left out: not installed: newuidmap")
    env = {"CLSECURE_IMAGES": str(minimal.data)}
    built_here = plain.clsecure("images", "build", "worker-minimal", "--output", "json", env=env, timeout=280)
    done = built_here.check()
    document = done.json()
    schema.check(document, schema.load("images"))
    (built,) = document["images"]
    assert built["image"] == minimal.image
    assert filecmp.cmp(built["archive"], minimal.archive, shallow=False)
    listed = plain.clsecure("images", "list", "--output", "json", env=env).check().json()
    schema.check(listed, schema.load("images"))
    assert {each["name"]: each["archive"] for each in listed["images"]} == {
        "worker": None,
        "worker-minimal": built["archive"],
    }


def scratch_of(person: Person) -> list[Path]:
    """Where a person's builds are at work, or were."""
    return [each for each in Path("/var/tmp").glob("clsecure-image-*") if each.stat().st_uid == person.uid]


def processes_of(person: Person) -> list[str]:
    """What runs as a person, or in the range of uids that the person was given."""
    rows = [line.split(":") for line in Path("/etc/subuid").read_text().splitlines()]
    ranges = [range(int(row[1]), int(row[1]) + int(row[2])) for row in rows if row[0] == person.name]
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            said = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
            uid = int(said["Uid"].split()[0])
            ours = uid == person.uid or any(uid in each for each in ranges)
            if ours and not said["State"].startswith("Z"):
                found.append(f"{status.parent.name} {said['Name']}")
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_leaves_no_process_and_no_file(minimal, plain, number) -> None:
    """Not of the person's own, nor of the range of uids in which mmdebstrap works; killed builds' go, too."""
    if shutil.which("newuidmap", path=SYSTEM_PATH) is None:
        pytest.skip("left out: not installed: newuidmap")
    give_packages(plain, minimal, "interrupted")
    killed = Path(f"/var/tmp/clsecure-image-killed-{plain.name}")
    plain.run(["mkdir", "-p", str(killed)]).check()
    plain.run(["touch", "-d", "2 hours ago", str(killed)]).check()
    env = {"CLSECURE_IMAGES": str(minimal.data), "XDG_CACHE_HOME": str(plain.home / "interrupted")}
    deep = "root/mmdebstrap.*/var/lib/dpkg/info"
    process = plain.spawn(
        plain.clsecure_argv("images", "build", "worker-minimal"),
        env=env,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        wait_until(
            lambda: [found for place in scratch_of(plain) for found in place.glob(deep)],
            "mmdebstrap at work",
        )
        # To it alone: on a terminal all of its group would hear.
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, errors
    assert b"not permitted" not in errors
    assert scratch_of(plain) == []
    wait_until(lambda: processes_of(plain) == [], "the end of what the build started", 5)


@pytest.mark.parametrize("name", ["minimal", "worker"])
def test_i3_no_layer_holds_a_secret_a_cache_or_a_setuid_file(request, name: str) -> None:
    seen = set()
    for _, member, tar in members(request.getfixturevalue(name)):
        seen.add(member.name)
        assert member.isreg() or member.isdir() or member.issym() or member.islnk(), member.name
        assert member.mode & 0o6000 == 0, member.name
        assert (member.uid, member.gid) == (0, 0), member.name
        assert member.pax_headers == {}, member.name
        if not (member.issym() or member.islnk()):
            assert member.mode & 0o004, member.name
            assert member.mode & 0o022 == 0 or member.name in {"tmp", "var/tmp"}, member.name
        if member.isreg() and 0 < member.size < 1 << 20:
            assert not _SECRET.search(tar.extractfile(member).read()), member.name
    for kept_empty in ("var/cache", "var/log", "var/lib/apt", "root", "tmp", "etc/apt", "run"):
        below = {each for each in seen if each.startswith(f"{kept_empty}/")}
        assert below <= {"run/.containerenv"}, below
    assert not {"etc/shadow", "etc/gshadow", "etc/gitconfig"} & seen
    assert {"usr/bin/tini", "usr/bin/git", "usr/bin/python3", "usr/share/clsecure/sbom.cdx.json"} <= seen


def test_i6_the_agent_is_roots_read_only_and_its_hash_is_in_the_lock(worker) -> None:
    found = {m.name: (layer, m) for layer, m, _ in members(worker) if m.name == "opt/clsecure/bin/claude"}
    layer, program = found["opt/clsecure/bin/claude"]
    assert layer == "claude"
    assert (program.mode, program.uid, program.gid) == (0o555, 0, 0)
    claude = next(each for each in worker.lock.inputs.npm if each.layer == "claude")
    assert read_archive(worker.archive).labels["clsecure.agents"] == f"claude@{claude.version}"


def test_labels_name_the_lock_and_the_bill_of_materials_in_the_image(minimal) -> None:
    labels = read_archive(minimal.archive).labels
    assert labels["clsecure.lock.sha256"] == minimal.lock.inputs.sha256()
    (inside,) = [
        tar.extractfile(member).read()
        for _, member, tar in members(minimal)
        if member.name == "usr/share/clsecure/sbom.cdx.json"
    ]
    assert labels["clsecure.sbom.sha256"] == hashlib.sha256(inside).hexdigest()
    assert inside == minimal.archive.with_suffix(".cdx.json").read_bytes()
    assert len(json.loads(inside)["components"]) == len(minimal.lock.inputs.packages)


# ------------------------------------------------------------ engines


def test_i2_each_engine_gives_the_image_the_id_of_the_lock(store, minimal) -> None:
    said: list[str] = []
    assert load_checked(store, minimal.archive, said.append) == minimal.image
    assert store.ids()[minimal.image] == (f"localhost/clsecure/worker-minimal:{minimal.image[7:19]}",)
    assert said[-1].endswith("100 %")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """An archive like ours, of two small layers."""
    return small_archive(tmp_path / "tiny")


def test_loading_again_does_nothing(store, tiny) -> None:
    image = load_checked(store, tiny, quiet)
    said: list[str] = []
    assert load_checked(store, tiny, said.append) == image
    assert said == []


def test_what_an_engine_saves_is_the_same_image_again(store, tiny, tmp_path) -> None:
    image = load_checked(store, tiny, quiet)
    store.save(image, tmp_path / "saved.tar")
    assert read_archive(tmp_path / "saved.tar").image == image
    store.remove(image)
    assert image not in store.ids()
    assert load_checked(store, tmp_path / "saved.tar", quiet) == image


def test_saving_writes_over_nothing(store, tiny, tmp_path) -> None:
    image = load_checked(store, tiny, quiet)
    place = tmp_path / "place"
    place.mkdir()
    (place / "mine").write_text("mine")
    with pytest.raises(ImageError, match="exists already"):
        store.save(image, place / "mine")
    assert (place / "mine").read_text() == "mine"
    assert [each.name for each in place.iterdir()] == ["mine"]


def test_a_damaged_archive_is_refused(store, tiny) -> None:
    image = read_archive(tiny).image
    with tiny.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damage")
    with pytest.raises(ImageError, match=f"{store.engine} (refused|made another image)"):
        load_checked(store, tiny, quiet)
    assert image not in store.ids()


def test_an_archive_of_another_image_than_the_locked_one_is_not_loaded(store, tiny) -> None:
    """What lies in the cache under the name of an image may be anything."""
    with pytest.raises(ImageError, match="another image than the lock names"):
        load_checked(store, tiny, quiet, expected=f"sha256:{'1' * 64}")
    assert store.ids() == {}


def test_an_image_that_somebody_tagged_is_not_ours_to_prune(store, tiny, tmp_path) -> None:
    image = load_checked(store, tiny, quiet)
    assert set(ours(store.ids())) == {image}
    assert ours({image: (*store.ids()[image], "docker.io/library/mine:1")}) == {}
    assert ours({image: ()}) == {}


def test_an_engine_that_is_not_there_is_said(tmp_path) -> None:
    with pytest.raises(BackendUnavailableError, match="docker can't be reached"):
        DockerStore(f"unix://{tmp_path}/none").ids()


def test_the_command_loads_saves_and_prunes_with_docker(docker, minimal, plain, tiny) -> None:
    """As a user of docker would; who may use the socket is docker's business."""
    socket = Path(docker.removeprefix("unix://"))
    socket.chmod(0o666)
    socket.parent.chmod(0o711)
    env = {"DOCKER_HOST": docker, "CLSECURE_IMAGES": str(minimal.data)}
    archive = plain.home / "image.tar"
    shutil.copy(minimal.archive, archive)
    loaded = plain.clsecure("images", "load", str(archive), "--output", "json", env=env).check().json()
    schema.check(loaded, schema.load("images"))
    assert loaded["images"][0]["loaded"] == ["docker"]
    assert minimal.image in DockerStore(docker).ids()
    saved = plain.home / "saved.tar"
    shutil.rmtree(plain.home / ".cache/clsecure/images/archives", ignore_errors=True)
    plain.clsecure("images", "save", "worker-minimal", str(saved), env=env).check()
    assert read_archive(saved).image == minimal.image
    old = load_checked(DockerStore(docker), tiny, quiet)
    pruned = plain.clsecure("images", "prune", "--output", "json", env=env).check().json()
    schema.check(pruned, schema.load("images"))
    assert pruned["removed"] == {"docker": [old]}
    assert set(ours(DockerStore(docker).ids())) == {minimal.image}
    DockerStore(docker).remove(minimal.image)


def test_what_our_launcher_and_the_agent_need_works_inside(podman, worker) -> None:
    """Read-only, without capabilities and network, as sessions run it."""
    import podman as podman_py

    store = PodmanStore(lambda: opened(podman))
    load_checked(store, worker.archive, quiet)
    tried = (
        "set -e; tini --version; git --version; rg --version; jq --version; node --version; npm --version; "
        "cc --version; docker --version; docker compose version; curl --version; python3 -m venv /tmp/v; "
        "/tmp/v/bin/python -m pip --version; claude --version; id -u; "
        "python3 -I -S -c 'import ctypes, hashlib, json, socket, ssl, sqlite3, subprocess'; "
        "python3 -v -c 'import json' 2>&1 | grep -q 'code object from.*json/__pycache__/'; "
        "touch /x 2>/dev/null && exit 9; echo read-only; npm ci --help >/dev/null; echo all"
    )
    with podman_py.PodmanClient(base_url=podman, timeout=120) as client:
        container = client.containers.create(
            worker.image.removeprefix("sha256:"), ["bash", "-c", tried], network_mode="none",
            cap_drop=["all"], read_only=True, mounts=[{"type": "tmpfs", "source": "tmpfs", "target": "/tmp"}],
        )  # fmt: skip
        try:
            container.start()
            status = container.wait()
            text = b"".join(container.logs(stdout=True, stderr=True)).decode()
        finally:
            container.remove(force=True)
    assert (status, text[-14:]) == (0, "read-only\nall\n"), text
    store.remove(worker.image)
