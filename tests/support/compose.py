"""A project with a compose file: one image built from nothing but a static busybox, in the agent's hands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.support.engines import need
from tests.support.person import Person

DOCKERFILE = b"""\
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN ["/bin/busybox", "sh", "-c", "mkdir -p /srv/www /etc /tmp /data && echo served >/srv/www/index.html && \
echo 'root:x:0:0::/:/bin/sh' >/etc/passwd && echo 'nobody:x:65534:65534::/:/bin/sh' >>/etc/passwd && \
chown 999:999 /data"]
ENV PATH=/bin
CMD ["/bin/httpd", "-f", "-p", "80", "-h", "/srv/www"]
"""
COMPOSE = b"""\
version: "3.7"
services:
  web:
    build: ./app
    image: clsecure-web
    volumes: ["data:/data"]
    ports: ["8080:80"]
  peer:
    image: clsecure-web
    user: "999"
    depends_on: [web]
    command: ["/bin/sh", "-c", "echo from-peer >/data/word; exec sleep 10000"]
    volumes: ["data:/data", "./:/work"]
volumes:
  data: {}
"""
BUILD = "docker build -q -t clsecure-web app >/dev/null 2>&1"
"""What builds the image, for a shell inside."""


def client(mode: str) -> str:
    """Return what brings compose projects up in a mode: the worker image has the plugin."""
    if mode == "container" or Path("/usr/libexec/docker/cli-plugins/docker-compose").exists():
        return "docker compose"
    need("docker-compose")
    return "docker-compose"


def give_project(person: Person, repository: Path) -> None:
    """Commit the project to a repository of the person's; skip where there is nothing to make it of."""
    need("docker", "podman", "crun", "busybox")
    busybox = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    if b"/lib64/ld-linux" in busybox[:4096]:
        pytest.skip("left out: not installed: busybox-static")
    person.run(["mkdir", "-p", str(repository / "app")]).check()
    person.write(repository / "app/busybox", busybox, mode=0o755)
    person.write(repository / "app/Dockerfile", DOCKERFILE)
    person.write(repository / "docker-compose.yml", COMPOSE)
    person.git(repository, "add", ".")
    person.git(repository, "commit", "--quiet", "-m", "A project of containers")
