"""What a docker on this machine says of itself, asked over its socket: bounded, and nothing is started."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT = 3.0
_MAX_ANSWER = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DockerFacts:
    """One docker.

    :param components: versions of what it runs containers with, by name: ``runc``, ``containerd``.
    :param other_uids: uids inside are others outside: docker is rootless, or has userns-remap.
    """

    version: str
    components: Mapping[str, str]
    other_uids: bool


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("docker", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT)
        self.sock.connect(str(self._path))


def ask(path: Path) -> DockerFacts:
    """Ask the docker that listens at a socket.

    :raises OSError: it does not answer.
    :raises ValueError: what answers is no docker.
    """
    connection = _Connection(path)
    try:
        version, info = _get(connection, "/version"), _get(connection, "/info")
    except http.client.HTTPException as error:
        raise ValueError(f"no answer of docker's: {type(error).__name__}") from None
    finally:
        connection.close()
    components = version.get("Components")
    options = info.get("SecurityOptions")
    options = options if isinstance(options, list) else []
    return DockerFacts(
        version=str(version.get("Version", ""))[:64],
        components={
            str(each.get("Name", "")).lower(): str(each.get("Version", ""))[:64]
            for each in (components if isinstance(components, list) else [])
            if isinstance(each, dict)
        },
        other_uids=any(str(each).startswith(("name=rootless", "name=userns")) for each in options),
    )


def _get(connection: http.client.HTTPConnection, target: str) -> dict[str, Any]:
    connection.request("GET", target)
    response = connection.getresponse()
    data = response.read(_MAX_ANSWER + 1)
    if response.status != http.client.OK or len(data) > _MAX_ANSWER:
        raise ValueError(f"no answer of docker's (status {response.status})")
    answer = json.loads(data)
    if not isinstance(answer, dict):
        raise ValueError("no answer of docker's")
    return answer
