"""git-remote: the hosts of the repository's own remotes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from clsecure.egress.presets.urls import WEB, ToolUrl, read_url
from clsecure.egress.presets.values import Collection, Person, Preset
from clsecure.errors import EgressError, ToolError
from clsecure.git import Git, discover

_SCHEMES = {"https": 443, "http": 80, "ssh": 22, "git+ssh": 22, "ssh+git": 22, "git": 9418}
_MAX_URLS = 200
_HELPER = re.compile(r"[A-Za-z0-9+.-]+::")
_DEADLINE = 30.0


def find(person: Person) -> Preset:
    """Return the hosts that the repository's remotes are on, after the user's ``insteadOf``."""
    preset = Collection("git-remote")
    if person.repository is None:
        raise EgressError(
            "The preset git-remote needs a repository", resolution="Start it in your project's repository"
        )
    rewritten = []
    for name, text in _remotes(person.repository):
        where = f"remote {name}"
        url = _url(text, where=where)
        if url is None:
            continue
        preset.add(url, where)
        if url.scheme not in WEB:
            preset.note(f"{where} is reached by {url.scheme}, which needs a key and a proxy command inside")
        elif url.loopback:
            rewritten.append(url)
    for number, url in enumerate(dict.fromkeys(rewritten)):
        preset.env[f"GIT_CONFIG_KEY_{number}"] = f"url.{_base(url, url.inside_host)}.insteadOf"
        preset.env[f"GIT_CONFIG_VALUE_{number}"] = _base(url, url.pattern.host)
        preset.env["GIT_CONFIG_COUNT"] = f"{number + 1}"
    return preset.finish(looked_at=["git remote -v"])


def _remotes(top: Path) -> list[tuple[str, str]]:
    """Return names and URLs, those to push to as well."""
    found = discover(top, "--absolute-git-dir")
    if found.returncode != 0:
        raise EgressError("The repository's remotes can't be read", resolution="Try: git remote -v")
    git = Git(git_dir=Path(found.stdout.decode("utf-8", "surrogateescape").rstrip("\n")), user_config=True)
    try:
        listed = git.run("remote", "--verbose", timeout=_DEADLINE).check().stdout
    except ToolError:
        # Without the cause: git's words may hold a URL.
        raise EgressError("The repository's remotes can't be read", resolution="Try: git remote -v") from None
    remotes = []
    for line in listed.decode("utf-8", "surrogateescape").splitlines():
        name, _, rest = line.partition("\t")
        remotes.append((name, re.sub(r" \((?:fetch|push)\)(?: \[[^\]]*\])?$", "", rest)))
    unique = list(dict.fromkeys(remotes))
    if len(unique) > _MAX_URLS:
        raise EgressError(
            "The repository has more remotes than anybody uses",
            resolution="Name the hosts with --allow-domain HOST[:PORT]",
        )
    return unique


def _url(text: str, *, where: str) -> ToolUrl | None:
    """Return a remote's URL, None for a directory and for what a program of its own fetches."""
    if _HELPER.match(text) or text.startswith("file:"):
        return None
    if "://" not in text:
        # host:path of ssh; with a slash before the first colon it is a path.
        host, colon, _ = _scp_like(text)
        if not colon or "/" in host:
            return None
        text = f"ssh://{host}/"
    url = read_url(text, where=where, schemes=_SCHEMES)
    # The user name of ssh is no secret, and part of the address.
    return url if url.scheme in WEB else replace(url, credentials=False)


def _scp_like(text: str) -> tuple[str, str, str]:
    """Part ``[user@]host:path``; in brackets stands an IPv6 address, or a host with its port."""
    user, at, rest = text.rpartition("@") if "@" in text.partition("/")[0] else ("", "", text)
    if rest.startswith("[") and "]:" in rest:
        host, _, path = rest[1:].partition("]:")
        return f"{user}{at}{host if host.count(':') < 2 else f'[{host}]'}", ":", path
    host, colon, path = rest.partition(":")
    return f"{user}{at}{host}", colon, path


def _base(url: ToolUrl, host: str) -> str:
    """Return the beginning of a URL as git compares it."""
    name = f"[{host}]" if ":" in host and not host.startswith("[") else host
    port = "" if url.pattern.port == WEB[url.scheme] else f":{url.pattern.port}"
    return f"{url.scheme}://{name}{port}/"
