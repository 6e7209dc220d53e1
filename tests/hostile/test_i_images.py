"""D30, I1, I2, I5, I6, I7: images: what may lie in one, who writes the store, what is never built."""

from __future__ import annotations

import contextlib
import dataclasses
import grp
import hashlib
import io
import json
import os
import secrets
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.images.archive import configuration, tag
from clsecure.images.layers import Layer
from tests.support import sweep
from tests.support.containers import in_engine, words_of
from tests.support.hostile import Target
from tests.support.person import Person, make_person

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("hostile-container")]

IMAGES = Path("/var/lib/clsecure/images")


def store_of(person: Person) -> Path:
    """Where root keeps a person's images."""
    return IMAGES / str(person.uid) / "store"


def write_image(target: Path, members: list[tarfile.TarInfo], *, name: str, content: bytes = b"") -> str:
    """Write an archive of one image with one layer of the given entries; return its id."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    layer = hashlib.sha256(data.getvalue()).hexdigest()
    made = Layer(name="layer", diff_id=f"sha256:{layer}", size=len(data.getvalue()), path=target)
    config = configuration([made], architecture="amd64", epoch=0, environment={}, labels={})
    image = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{image}.json", "Layers": [f"{layer}.tar"], "RepoTags": [name]}]
    parts = {
        "manifest.json": json.dumps(manifest).encode(),
        f"{image}.json": config,
        f"{layer}.tar": data.getvalue(),
    }
    with tarfile.open(target, "w:") as tar:
        for part, content_of_it in parts.items():
            info = tarfile.TarInfo(part)
            info.size = len(content_of_it)
            tar.addfile(info, io.BytesIO(content_of_it))
    target.chmod(0o644)
    return f"sha256:{image}"


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", **options: int) -> tarfile.TarInfo:
    """Return an entry of a layer."""
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode = kind, link, options.pop("mode", 0o644)
    for key, value in options.items():
        setattr(made, key, value)
    return made


def hostile(mark: str, home: Path) -> dict[str, list[tarfile.TarInfo]]:
    """Return layers that would write outside of where they are unpacked, or leave what raises somebody."""
    up = "../" * 16
    return {
        "dots": [entry(f"{up}etc/{mark}"), entry(f"a/{up}{up}tmp/{mark}")],
        "absolute": [entry(f"/etc/{mark}"), entry(f"//var/tmp/{mark}")],
        "links": [
            entry("up", tarfile.SYMTYPE, f"{up}var/tmp"), entry(f"up/{mark}"),
            entry("abs", tarfile.SYMTYPE, "/etc"), entry(f"abs/{mark}"),
            entry("home", tarfile.SYMTYPE, str(home)), entry(f"home/{mark}"),
        ],
        "hard": [entry("passwd", tarfile.LNKTYPE, f"{up}etc/passwd"), entry("passwd")],
        "devices": [
            entry("disk", tarfile.BLKTYPE, devmajor=254, devminor=0, mode=0o666),
            entry("memory", tarfile.CHRTYPE, devmajor=1, devminor=1, mode=0o666),
            entry("fifo", tarfile.FIFOTYPE), entry("root", mode=0o6755, uid=0),
            entry("other", uid=1000, gid=1000),
        ],
    }  # fmt: skip


@pytest.mark.parametrize("how", ["dots", "absolute", "links", "hard", "devices"])
def test_d30_a_hostile_layer_lands_in_the_store_or_nowhere(contained, tmp_path, how):
    """Entries that climb, absolute ones, links out and through them, hard links, devices, set-uid files."""
    person, mark = contained.person, f"escaped-{secrets.token_hex(6)}"
    passwd = Path("/etc/passwd").read_bytes()
    archive = person.home / f"{how}.tar"
    write_image(
        archive, hostile(mark, person.home)[how], name=f"localhost/clsecure/{how}:1", content=b"hostile"
    )
    person.clsecure("images", "load", str(archive))
    places = ("/etc", "/tmp", "/var", "/home", "/run", "/usr/local", "/root", "/dev/shm")
    found = subprocess.run(
        ["find", *places, "-name", mark, "-print"], capture_output=True, text=True, timeout=120
    ).stdout.split()
    assert [path for path in found if not Path(path).is_relative_to(store_of(person))] == []
    # Other tests make and remove accounts meanwhile.
    now = Path("/etc/passwd").read_bytes().splitlines()
    assert now[0] == passwd.splitlines()[0]
    assert b"hostile" not in now
    assert_store_is_nobodys(person)


def test_d30_a_hostile_archive_is_refused(contained):
    """The archive around the layers: names of its parts that lead elsewhere, links for parts, no end."""
    person, mark = contained.person, f"escaped-{secrets.token_hex(6)}"
    for number, (name, kind) in enumerate(
        [(f"../../../../var/tmp/{mark}", tarfile.REGTYPE), ("/etc/shadow", tarfile.SYMTYPE)]
    ):
        archive = person.home / f"archive-{number}.tar"
        config = json.dumps({"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}).encode()
        manifest = json.dumps([{"Config": "c.json", "Layers": [name], "RepoTags": ["x:1"]}]).encode()
        with tarfile.open(archive, "w:") as tar:
            for part, data in (("manifest.json", manifest), ("c.json", config)):
                info = tarfile.TarInfo(part)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            tar.addfile(entry(name, kind, "/etc/shadow"))
        archive.chmod(0o644)
        done = person.clsecure("images", "load", str(archive))
        assert done.returncode != 0
        assert not Path("/var/tmp", mark).exists()


def assert_store_is_nobodys(person: Person) -> None:
    """Fail unless every file of a store belongs to its own account, and none raises anybody."""
    account = json.loads((IMAGES / str(person.uid) / "account.json").read_text())
    assert sweep.processes_of(account["uid"]) == []
    for place, directories, names in os.walk(store_of(person)):
        for path in (Path(place, name) for name in directories + names):
            info = path.lstat()
            assert info.st_uid == account["uid"], path
            assert not stat.S_ISBLK(info.st_mode), path
            # The mark of a removed file, which overlay makes and which opens nothing.
            assert not stat.S_ISCHR(info.st_mode) or info.st_rdev == 0, path


# ---------------------------------------------------------------- I1, I7


AMBUSH = {
    "Containerfile": "FROM scratch\nCOPY . /\nRUN touch {marker}\n",
    "Dockerfile": "FROM scratch\nRUN touch {marker}\n",
    ".devcontainer/devcontainer.json": '{{"build": {{"dockerfile": "../Dockerfile"}}, '
    '"initializeCommand": "touch {marker}", "postCreateCommand": "touch {marker}"}}',
    "compose.yaml": "services:\n  x:\n    build: .\n    privileged: true\n    volumes: ['/:/host']\n",
    "pod.yaml": "apiVersion: v1\nkind: Pod\nmetadata: {{name: x}}\nspec:\n  hostPID: true\n",
    ".containerenv": "engine=podman",
    "images/worker/recipe.toml": 'name = "worker"\n',
    "images/worker/lock.amd64.json": '{{"image": "worker"}}',
}


@contextlib.contextmanager
def watched(uid: int) -> Iterator[set[tuple[str, ...]]]:
    """Note the beginnings of all argument vectors of a uid, all the time."""
    seen: set[tuple[str, ...]] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            for pid in sweep.processes_of(uid):
                words = words_of(pid)
                if words and words[0].endswith(("podman", "docker", "buildah")):
                    seen.add(tuple(word for word in words[1:] if not word.startswith("-")))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def test_i1_i7_what_describes_containers_is_not_built_or_run(contained):
    """A repository with all kinds of such files, and an agent that writes more of them: they are files."""
    person = contained.person
    marker = person.home / f"built-{secrets.token_hex(6)}"
    repository = person.repository("described")
    for name, content in AMBUSH.items():
        person.run(["mkdir", "-p", str((repository / name).parent)]).check()
        person.write(repository / name, content.format(marker=marker).encode())
    person.git(repository, "add", ".")
    person.git(repository, "commit", "--quiet", "-m", "described")
    target = dataclasses.replace(contained, repository=repository)
    target.attack("true", finish="keep").outcome.check()
    images = loaded(person)
    with watched(int(target.account()["uid"])) as seen:
        work = "for f in Containerfile compose.yaml pod.yaml; do cat $f >agents-$f; done; touch done"
        attack = target.attack(work, "--resume", finish="import")
    attack.outcome.check()
    assert attack.result["import"]["branch"]
    assert ("system", "service") in seen, "nothing was seen"
    # What conmon calls when the container ends is the other thing that podman is run for.
    others = {words for words in seen if words != ("system", "service")}
    assert not {words for words in others if words[-3:-1] != ("container", "cleanup")}, others
    assert loaded(person) == images
    assert not marker.exists()


def loaded(person: Person) -> list[str]:
    """Return the ids of the images in a person's store."""
    names = store_of(person) / "storage/overlay-images/images.json"
    return sorted(image["id"] for image in json.loads(names.read_text()))


# ---------------------------------------------------------------- I2, I6


def test_i2_another_image_of_the_same_name_is_not_taken(contained, podman_image):
    """Somebody gives another image the tag of the worker's: what runs is the one in the lock, by its id."""
    person = contained.person
    archive = person.home / "same-name.tar"
    other = write_image(
        archive, [entry("usr", tarfile.DIRTYPE, mode=0o755), entry("usr/hijacked")],
        name=tag("worker", podman_image.image), content=b"hijacked",
    )  # fmt: skip
    person.clsecure("images", "load", str(archive)).check()
    assert other.removeprefix("sha256:") in loaded(person), "the other image is not there"
    attack = contained.attack("ls -d /usr/hijacked; git --version")
    assert "git version" in attack.said
    assert "hijacked" not in attack.said.replace("cannot access '/usr/hijacked'", "")
    held = attack.result["container"]
    assert (held["image"], held["image_id"]) == (podman_image.name, podman_image.image)


def test_i6_the_agent_in_the_image_is_out_of_the_agents_reach(contained, podman_image):
    """Overwritten, replaced, renamed, made writable, shadowed by a mount: by "root" inside."""
    script = """
    cd /opt/clsecure/bin
    sha256sum claude | cut -d' ' -f1; stat -c '%u %a' claude /opt/clsecure/bin
    (echo x >>claude) 2>/dev/null && echo written
    (echo x >new) 2>/dev/null && echo made
    mv claude other 2>/dev/null && echo moved; rm -f claude 2>/dev/null && echo removed
    chmod u+w claude 2>/dev/null && echo changed; chown 0 claude 2>/dev/null && echo owned
    mount --bind /bin/true claude 2>/dev/null && echo covered
    ln -f claude /tmp/claude 2>/dev/null && echo linked
    sha256sum claude | cut -d' ' -f1
    """
    said = contained.attack(script).said.split("\n")
    digest = said[0]
    assert said[1:3] == ["65534 555", "65534 755"]
    assert [line for line in said[3:] if line] == [digest]
    (npm,) = [each for each in podman_image.lock.inputs.npm if each.kind == "agent"]
    layer = next(each for each in podman_image.lock.outcome.layers if each.name == npm.layer)
    with tarfile.open(podman_image.archive) as archive:
        part = archive.extractfile(f"{layer.diff_id.removeprefix('sha256:')}.tar")
        assert part is not None
        with tarfile.open(fileobj=part) as tar:
            (file,) = [each for each in tar if each.name.endswith("/claude")]
            content = tar.extractfile(file)
            assert content is not None
            assert hashlib.file_digest(content, "sha256").hexdigest() == digest


# ---------------------------------------------------------------- I5


@contextlib.contextmanager
def another_member(name: str) -> Iterator[Person]:
    """Yield a second person who may use what is installed."""
    try:
        made = make_person(name, ())
        subprocess.run(["gpasswd", "--add", name, "clsecure"], check=True, capture_output=True, timeout=60)
        yield dataclasses.replace(made, groups=(grp.getgrnam("clsecure").gr_gid,))
    finally:
        sweep.remove_person(name)


def test_i5_the_store_is_its_owners_and_nobody_writes_it_in_a_session(contained):
    """The worker, the engine around it, another member of the group, another account: none can change it."""
    person, store = contained.person, store_of(contained.person)
    before = {path: path.lstat().st_mtime_ns for path in store.rglob("*") if not path.is_symlink()}
    with contained.live("echo ready; read _") as agent:
        agent.wait_for("ready")
        # As the engine itself, with all capabilities of its user namespace.
        for attempt in (
            "touch /opt/clsecure/images/new",
            "mount -o remount,rw,bind /opt/clsecure/images && touch /opt/clsecure/images/new",
            "umount /opt/clsecure/images", "chmod -R 777 /opt/clsecure/images",
            "chown -R 0 /opt/clsecure/images",
            "mount --bind /opt/clsecure/images /mnt && mount -o remount,rw,bind /mnt && touch /mnt/new",
        ):  # fmt: skip
            done = in_engine(agent, "/bin/sh", "-c", attempt)
            assert done.returncode != 0, attempt
        uid = int(contained.account()["uid"])
        # As the worker on the machine itself, where only permissions are in the way.
        for account in (uid, person.uid, 65534):
            for attempt in (["ls", str(store)], ["touch", str(store / "new")], ["ls", str(store.parent)]):
                done = subprocess.run(
                    attempt, user=account, group=account, extra_groups=[], capture_output=True
                )
                assert done.returncode != 0, (account, attempt)
    with another_member(f"{person.name[:24]}x") as other:
        target = Target(person=other, mode="container", repository=other.repository("mine"))
        refused = target.refused()
        assert "the image worker is not there" in refused.text, "another person's image was taken"
    after = {path: path.lstat().st_mtime_ns for path in store.rglob("*") if not path.is_symlink()}
    assert {path for path in before if before[path] != after.get(path)} == set()
