"""Presets: which hosts the user's own configuration of a tool names, and what hostile configuration does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clsecure.egress.presets import NAMES, Preset, resolve
from clsecure.egress.presets.urls import read_url
from clsecure.errors import EgressError, UsageError
from clsecure.policy import HOST_ALIAS
from tests.support.clone_in import git

SECRET = "hunter2"


class World:
    """A made-up home and machine, with tools only where a test puts some."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.system = root / "system"
        self.bin = root / "bin"
        self.repository = root / "repository"
        for directory in (self.home, self.system, self.bin, self.repository):
            directory.mkdir()
        self.environ: dict[str, str] = {"PATH": f"{self.bin}", "HOME": f"{self.home}"}

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def tool(self, name: str, script: str, *, directory: Path | None = None) -> Path:
        path = self.write((directory or self.bin) / name, f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def resolve(self, *names: str) -> tuple[Preset, ...]:
        return resolve(
            names,
            environ=self.environ,
            home=self.home,
            repository_top=self.repository,
            system=self.system,
        )

    def one(self, name: str) -> Preset:
        (preset,) = self.resolve(name)
        return preset

    def refusal(self, name: str) -> str:
        """Everything that a refusal says."""
        with pytest.raises(EgressError) as caught:
            self.resolve(name)
        error = caught.value
        assert error.__cause__ is None
        assert error.__suppress_context__ or error.__context__ is None
        return f"{error.brief}\n{error.details}\n{error.resolution}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def hosts(preset: Preset) -> set[str]:
    return {f"{rule.pattern.host}:{rule.pattern.port}" for rule in preset.rules}


def pip_answers(simple: str, files: str) -> str:
    """The script of a python that answers the question for pip's default."""
    return f"[ \"$1\" = -I ] && echo '{json.dumps([simple, files])}'"


DEFAULT_PIP = pip_answers("https://index.example.org/simple", "files.example.org")


# ------------------------------------------------------------------ what tools are configured for

Case = tuple[str, Mapping[str, str], Mapping[str, str], set[str], Mapping[str, str]]

CASES: dict[str, Case] = {
    "npm's registry in the user's file": (
        "npm",
        {"home/.npmrc": "; ours\nregistry=https://npm.example.org/repository/npm/\n"},
        {},
        {"npm.example.org:443"},
        {"NPM_CONFIG_REGISTRY": "https://npm.example.org/repository/npm/"},
    ),
    "npm's registry in the environment wins": (
        "npm",
        {"home/.npmrc": "registry=https://npm.example.org/\n"},
        {"npm_config_registry": "https://other.example.org:8443/"},
        {"other.example.org:8443"},
        {"NPM_CONFIG_REGISTRY": "https://other.example.org:8443/"},
    ),
    "npm's registry in the machine's file": (
        "npm",
        {"system/etc/npmrc": 'registry = "http://npm.example.org/"\n'},
        {},
        {"npm.example.org:80"},
        {"NPM_CONFIG_REGISTRY": "http://npm.example.org/"},
    ),
    "npm's scopes": (
        "npm",
        {
            "home/.npmrc": "registry=https://npm.example.org/\n  @team:registry = https://team.example.org/npm/\n",
            "system/etc/npmrc": "@team:registry=https://weaker.example.org/\n@all:registry=https://all.example.org/",
        },
        {},
        {"npm.example.org:443", "team.example.org:443", "all.example.org:443"},
        {
            "NPM_CONFIG_REGISTRY": "https://npm.example.org/",
            "npm_config_@team:registry": "https://team.example.org/npm/",
            "npm_config_@all:registry": "https://all.example.org/",
        },
    ),
    "npm's registry from a variable": (
        "npm",
        {"home/.npmrc": "registry=https://${COMPANY_HOST}/npm/\n//npm.example.org/npm/:_authToken=${NOT_SET}\n"},
        {"COMPANY_HOST": "npm.example.org"},
        {"npm.example.org:443"},
        {"NPM_CONFIG_REGISTRY": "https://npm.example.org/npm/"},
    ),
    "npm's registry on this machine": (
        "npm",
        {"home/.npmrc": "registry=http://localhost:4873/\ncafile=/etc/ssl/company.pem\n"},
        {},
        {"localhost:4873", f"{HOST_ALIAS}:4873"},
        {
            "NPM_CONFIG_REGISTRY": f"http://{HOST_ALIAS}:4873/",
            "NPM_CONFIG_CAFILE": "/etc/ssl/company.pem",
            "NPM_CONFIG_REPLACE_REGISTRY_HOST": "always",
        },
    ),
    "npm's registry on this machine, below a path": (
        "npm",
        {"home/.npmrc": "registry=http://localhost:4873/npm/\n"},
        {},
        {"localhost:4873", f"{HOST_ALIAS}:4873"},
        {"NPM_CONFIG_REGISTRY": f"http://{HOST_ALIAS}:4873/npm/"},
    ),
    "npm's registries on this machine, each with a path of its own": (
        "npm",
        {"home/.npmrc": "registry=http://localhost:4873/\n@team:registry=http://localhost:4873/team/\n"},
        {},
        {"localhost:4873", f"{HOST_ALIAS}:4873"},
        {
            "NPM_CONFIG_REGISTRY": f"http://{HOST_ALIAS}:4873/",
            "npm_config_@team:registry": f"http://{HOST_ALIAS}:4873/team/",
        },
    ),
    "pip's indexes and links": (
        "pip",
        {
            "home/.config/pip/pip.conf": "[global]\nindex-url = https://pip.example.org/simple\n"
            "extra_index_url =\n    https://more.example.org/simple\n    http://[2001:db8::1]:8080/simple\n"
            "trusted-host = more.example.org\n[install]\nfind-links = https://links.example.org/ ./wheels\n",
            "system/etc/pip.conf": "[global]\nindex-url = https://weaker.example.org/simple\n",
        },
        {},
        {"pip.example.org:443", "more.example.org:443", "2001:db8::1:8080", "links.example.org:443"},
        {
            "PIP_INDEX_URL": "https://pip.example.org/simple",
            "PIP_EXTRA_INDEX_URL": "https://more.example.org/simple http://[2001:db8::1]:8080/simple",
            "PIP_FIND_LINKS": "https://links.example.org/",
            "PIP_TRUSTED_HOST": "more.example.org:443",
            "UV_DEFAULT_INDEX": "https://pip.example.org/simple",
            "UV_INDEX": "https://more.example.org/simple http://[2001:db8::1]:8080/simple",
            "UV_FIND_LINKS": "https://links.example.org/",
        },
    ),
    "pip's section for installations wins over the global one": (
        "pip",
        {
            "home/.pip/pip.conf": "[install]\nindex-url = http://install.example.org/simple\n",
            "home/.config/pip/pip.conf": "[global]\nindex-url = http://global.example.org/simple\n",
        },
        {},
        {"install.example.org:80"},
        {
            "PIP_INDEX_URL": "http://install.example.org/simple",
            "UV_DEFAULT_INDEX": "http://install.example.org/simple",
        },
    ),
    "pip's index on this machine, in the environment": (
        "pip",
        {"home/.config/pip/pip.conf": "[global]\nindex-url = https://weaker.example.org/simple\n"},
        {"PIP_INDEX_URL": "http://127.0.0.1:3141/root/simple/"},
        {"127.0.0.1:3141", f"{HOST_ALIAS}:3141"},
        {
            "PIP_INDEX_URL": f"http://{HOST_ALIAS}:3141/root/simple/",
            "PIP_TRUSTED_HOST": f"{HOST_ALIAS}:3141",
            "UV_DEFAULT_INDEX": f"http://{HOST_ALIAS}:3141/root/simple/",
        },
    ),
    "uv's own indexes": (
        "pip",
        {
            "home/.config/uv/uv.toml": 'find-links = ["https://links.example.org/uv"]\n'
            '[[index]]\nname = "more"\nurl = "https://more.example.org/simple"\n'
            '[[index]]\nurl = "https://weaker.example.org/simple"\ndefault = true\n',
        },
        {"PIP_INDEX_URL": "http://pip.example.org/simple", "UV_INDEX_URL": "https://uv.example.org/simple"},
        {"pip.example.org:80", "uv.example.org:443", "more.example.org:443", "links.example.org:443"},
        {
            "PIP_INDEX_URL": "http://pip.example.org/simple",
            "UV_DEFAULT_INDEX": "https://uv.example.org/simple",
            "UV_INDEX": "https://more.example.org/simple",
            "UV_FIND_LINKS": "https://links.example.org/uv",
        },
    ),
    "apt's sources in both formats": (
        "apt",
        {
            "system/etc/apt/sources.list": "# deb http://off.example.org/debian stable main\n"
            "deb [arch=amd64 signed-by=/k.gpg] http://deb.example.org/debian stable main\n"
            "deb-src https://src.example.org/debian stable main\ndeb cdrom:[Disk]/ stable main\n"
            "deb mirror+file:/etc/apt/mirrors/list stable main\n",
            "system/etc/apt/sources.list.d/x.list": "deb https://list.example.org:8443/x ./ \n",
            "system/etc/apt/sources.list.d/y.sources": "# a comment\nTypes: deb\nURIs: https://one.example.org/d\n"
            "  https://two.example.org/d\nSuites: stable\nSigned-By:\n -----\n .\n URIs: nothing\n\n"
            "Enabled: no\nTypes: deb\nURIs: https://off.example.org/d\nSuites: stable\n",
            "system/etc/apt/sources.list.d/z.save": "deb https://off.example.org/x ./ \n",
            "system/etc/apt/mirrors/list": "https://mirror.example.org/debian\tpriority:1\n",
        },
        {},
        {
            "deb.example.org:80",
            "src.example.org:443",
            "list.example.org:8443",
            "one.example.org:443",
            "two.example.org:443",
            "mirror.example.org:443",
        },
        {},
    ),
    "cargo's registries, the replacement of its own, and their stores": (
        "cargo",
        {
            "home/.cargo/config.toml": '[registries.team-a]\nindex = "sparse+https://cargo.example.org/index/"\n'
            '[source.crates-io]\nreplace-with = "mirror"\n'
            '[source.mirror]\nregistry = "sparse+https://mirror.example.org/"\n',
            "home/.cargo/registry/index/mirror.example.org-0123456789abcdef/config.json": json.dumps(
                {"dl": "https://store.example.org/crates/{crate}/{version}"}
            ),
            "home/.cargo/registry/index/stranger.example.org-0123456789abcdef/config.json": json.dumps(
                {"dl": "https://never.example.org/"}
            ),
        },
        {"CARGO_REGISTRIES_OTHER_INDEX": "https://git.example.org/index.git"},
        {
            "cargo.example.org:443",
            "mirror.example.org:443",
            "store.example.org:443",
            "git.example.org:443",
        },
        {
            "CARGO_REGISTRIES_TEAM_A_INDEX": "sparse+https://cargo.example.org/index/",
            "CARGO_REGISTRIES_OTHER_INDEX": "https://git.example.org/index.git",
        },
    ),
    "go's proxies and database": (
        "go",
        {"home/.config/go/env": "GOSUMDB=sum.example.org+deadbeef+AAAA https://db.example.org/sum\n"},
        {
            "GOPROXY": "https://go.example.org/a|http://localhost:8081,direct",
            "GOPRIVATE": "private.example.org/*",
        },
        {"go.example.org:443", "localhost:8081", f"{HOST_ALIAS}:8081", "db.example.org:443"},
        {
            "GOPROXY": f"https://go.example.org/a|http://{HOST_ALIAS}:8081,direct",
            "GOSUMDB": "sum.example.org+deadbeef+AAAA https://db.example.org/sum",
            "GOPRIVATE": "private.example.org/*",
        },
    ),
    "docker's logins and mirrors, podman's registries": (
        "docker",
        {
            "home/.docker/config.json": json.dumps(
                {"auths": {"https://login.example.org/v1/": {}, "reg.example.org:5000": {"auth": SECRET}}}
            ),
            "system/etc/docker/daemon.json": json.dumps(
                {"registry-mirrors": ["http://mirror.example.org"], "insecure-registries": ["10.0.0.0/8"]}
            ),
            "home/.config/containers/registries.conf": 'unqualified-search-registries = ["s.example.org"]\n'
            '[[registry]]\nprefix = "*.pattern.example.org"\n'
            '[[registry]]\nprefix = "a"\nlocation = "loc.example.org/team"\n'
            '[[registry.mirror]]\nlocation = "near.example.org:5001"\n'
            '[[registry]]\nlocation = "blocked.example.org"\nblocked = true\n',
            "system/etc/containers/registries.conf": 'unqualified-search-registries = ["w.example.org"]\n',
        },
        {},
        {
            "login.example.org:443",
            "reg.example.org:5000",
            "mirror.example.org:80",
            "s.example.org:443",
            "loc.example.org:443",
            "near.example.org:5001",
        },
        {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hosts_and_variables_of_a_configuration(case: str, world: World) -> None:
    name, files, environ, expected, env = CASES[case]
    for path, text in files.items():
        world.write(world.home.parent / path, text)
    world.environ.update(environ)
    preset = world.one(name)
    assert hosts(preset) == expected
    assert dict(preset.env) == env
    assert preset.name == name
    for rule in preset.rules:
        assert rule.where.startswith(f"preset {name} (")
        assert rule.may_be_private
        assert rule.connect == (None if rule.pattern.host != HOST_ALIAS else rule.connect)


def test_a_rule_says_which_configuration_named_it(world: World) -> None:
    npmrc = world.write(world.home / ".npmrc", "registry=https://npm.example.org/\n")
    (rule,) = world.one("npm").rules
    assert rule.where == f"preset npm ({npmrc})"


def test_what_leads_to_this_machine_connects_to_the_loopback(world: World) -> None:
    world.write(world.home / ".npmrc", "registry=http://localhost:4873/\n")
    alias = next(rule for rule in world.one("npm").rules if rule.pattern.host == HOST_ALIAS)
    assert alias.connect == "localhost"


# ------------------------------------------------------------------ git's remotes


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://git.example.org/team/p.git", "git.example.org:443"),
        ("http://git.example.org:3000/p", "git.example.org:3000"),
        ("git@git.example.org:team/p.git", "git.example.org:22"),
        ("git.example.org:p", "git.example.org:22"),
        ("ssh://git@git.example.org:2222/p", "git.example.org:2222"),
        ("git@[git.example.org:2222]:p", "git.example.org:2222"),
        ("[2001:db8::1]:p", "2001:db8::1:22"),
        ("git://git.example.org/p", "git.example.org:9418"),
        ("short:p", "full.example.org:443"),
    ],
)
def test_the_host_of_a_remote(url: str, host: str, world: World, home: Path) -> None:
    git(world.repository, "init", "--quiet")
    git(world.repository, "remote", "add", "origin", url)
    git(world.repository, "config", "url.https://full.example.org/.insteadOf", "short:")
    git(world.repository, "remote", "add", "here", "/srv/p.git")
    git(world.repository, "remote", "add", "helper", "ext::sh -c false")
    assert hosts(world.one("git-remote")) == {host}


def test_a_remote_on_this_machine_has_its_other_name_inside(world: World, home: Path) -> None:
    git(world.repository, "init", "--quiet")
    git(world.repository, "remote", "add", "origin", "http://localhost:3000/team/p.git")
    git(world.repository, "remote", "set-url", "--add", "--push", "origin", "https://push.example.org/p.git")
    preset = world.one("git-remote")
    assert hosts(preset) == {"localhost:3000", f"{HOST_ALIAS}:3000", "push.example.org:443"}
    asked = subprocess.run(
        ["git", "remote", "get-url", "origin"],
        cwd=world.repository, env={"PATH": os.environ["PATH"], "HOME": str(home), **preset.env},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert asked.stdout.strip() == f"http://{HOST_ALIAS}:3000/team/p.git"


def test_remotes_without_a_host_are_refused(world: World, home: Path) -> None:
    git(world.repository, "init", "--quiet")
    git(world.repository, "remote", "add", "origin", "../elsewhere")
    assert "git-remote found no host" in world.refusal("git-remote")


# ------------------------------------------------------------------ what the tools themselves answer


def test_npms_own_answer_counts_where_no_file_says_it(world: World) -> None:
    world.tool("npm", '[ "$*" = "config get registry" ] && [ "$PWD" = / ] && echo https://npm.example.org/')
    preset = world.one("npm")
    assert [rule.where for rule in preset.rules] == ["preset npm (npm config get registry)"]
    assert hosts(preset) == {"npm.example.org:443"}
    assert not preset.env


def test_pips_own_hosts_count_where_no_index_is_configured(world: World) -> None:
    world.tool("python3", DEFAULT_PIP)
    preset = world.one("pip")
    assert hosts(preset) == {"index.example.org:443", "files.example.org:443"}
    assert not preset.env


def test_pips_own_index_written_down_still_needs_its_host_of_files(world: World) -> None:
    world.tool("python3", DEFAULT_PIP)
    world.environ["PIP_INDEX_URL"] = "https://index.example.org/simple"
    assert hosts(world.one("pip")) == {"index.example.org:443", "files.example.org:443"}


def test_pips_own_hosts_are_not_added_to_a_mirror(world: World) -> None:
    world.tool("python3", DEFAULT_PIP)
    world.environ["PIP_INDEX_URL"] = "https://mirror.example.org/simple"
    assert hosts(world.one("pip")) == {"mirror.example.org:443"}


def test_a_python_without_pip_is_passed_over(world: World) -> None:
    world.tool("python3", "exit 1")
    other = world.home / "other"
    world.tool("python3", DEFAULT_PIP, directory=other)
    world.environ["PATH"] += f":{other}"
    assert "index.example.org:443" in hosts(world.one("pip"))


def test_go_itself_is_asked_for_what_is_not_configured(world: World) -> None:
    answer = json.dumps(
        {"GOPROXY": "https://go.example.org,direct", "GOSUMDB": "sum.example.org", "GOPRIVATE": ""}
    )
    world.tool("go", f"[ \"$GOTOOLCHAIN\" = local ] && echo '{answer}'")
    world.environ["GOPROXY"] = "https://mirror.example.org"
    preset = world.one("go")
    assert hosts(preset) == {"mirror.example.org:443", "sum.example.org:443"}
    assert dict(preset.env) == {"GOPROXY": "https://mirror.example.org", "GOSUMDB": "sum.example.org"}


def test_cargos_own_index_is_what_it_fails_to_reach(world: World) -> None:
    world.tool(
        "cargo", 'echo "failed to download from \\`https://index.example.org/config.json\\`" >&2; exit 101'
    )
    world.write(
        world.home / ".cargo/registry/index/index.example.org-0123456789abcdef/config.json",
        json.dumps({"dl": "https://store.example.org/crates"}),
    )
    assert hosts(world.one("cargo")) == {"index.example.org:443", "store.example.org:443"}


@pytest.mark.parametrize("name", ["npm", "python3", "go", "cargo"])
@pytest.mark.parametrize("place", ["inside the repository", "a link into it", "relative"])
def test_no_program_of_the_repository_is_run(name: str, place: str, world: World) -> None:
    marker = world.home / "ran"
    theirs = world.tool(name, f"echo x >{marker}; exit 1", directory=world.repository / "bin")
    match place:
        case "inside the repository":
            world.environ["PATH"] = f"{theirs.parent}"
        case "a link into it":
            (world.bin / name).symlink_to(theirs)
        case _:
            world.environ["PATH"] = f".:bin:{os.path.relpath(theirs.parent)}"
    world.refusal("pip" if name == "python3" else name)
    assert not marker.exists()
    # The control: outside of it the same program is run.
    world.tool(name, f"echo x >{marker}; exit 1")
    world.environ["PATH"] = f"{world.bin}" if place != "a link into it" else f"{theirs.parent}"
    if place == "a link into it":
        return
    world.refusal("pip" if name == "python3" else name)
    assert marker.exists()


def test_a_tool_sees_none_of_the_users_secrets(world: World) -> None:
    world.environ |= {"AWS_SECRET_ACCESS_KEY": SECRET, "NODE_OPTIONS": f"--require={SECRET}"}
    seen = world.home / "seen"
    world.tool("npm", f"/usr/bin/env >{seen}; exit 1")
    world.refusal("npm")
    assert "HOME=" in seen.read_text()
    assert SECRET not in seen.read_text()


def test_a_tool_finds_no_program_of_the_repository(world: World) -> None:
    world.environ["PATH"] = f"{world.repository}/bin:{world.bin}:.:{world.repository}"
    seen = world.home / "seen"
    world.tool("npm", f'echo "$PATH" >{seen}; exit 1')
    world.refusal("npm")
    assert seen.read_text().strip() == f"{world.bin}"


def test_a_tool_that_hangs_ends_with_the_deadline(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clsecure.egress.presets.ask.DEADLINE", 0.2)
    world.tool("npm", "exec sleep 60")
    began = time.monotonic()
    assert "npm config get registry" in world.refusal("npm")
    assert time.monotonic() - began < 40


def test_tools_are_asked_at_the_same_time(world: World) -> None:
    # Each waits for the other: one after the other they would come to the deadline.
    one, two = world.home / "one", world.home / "two"
    os.mkfifo(one)
    os.mkfifo(two)
    world.tool("npm", f"echo x >{one}; read line <{two}; echo https://npm.example.org/")
    world.tool("python3", f"read line <{one}; echo x >{two}; {DEFAULT_PIP}")
    assert [preset.name for preset in world.resolve("pip", "npm")] == ["npm", "pip"]


def test_configured_presets_ask_no_tool(world: World) -> None:
    marker = world.home / "ran"
    for tool in ("npm", "go", "cargo", "docker", "apt", "python3"):
        world.tool(tool, f"echo x >{marker}; exit 1")
    world.write(world.home / ".npmrc", "registry=https://npm.example.org/")
    world.write(world.system / "etc/apt/sources.list", "deb http://deb.example.org/ stable main\n")
    world.write(world.home / ".docker/config.json", '{"auths": {"registry.example.org": {}}}')
    world.environ |= {
        "PIP_INDEX_URL": "http://pip.example.org/simple",
        "GOPROXY": "https://go.example.org",
        "GOSUMDB": "off",
    }
    world.write(
        world.home / ".cargo/config.toml",
        '[source.crates-io]\nreplace-with = "m"\n[source.m]\nregistry = "sparse+https://m.example.org/"\n',
    )
    assert len(world.resolve("npm", "pip", "apt", "go", "cargo", "docker")) == 6
    assert not marker.exists()


# ------------------------------------------------------------------ the real ones


def test_the_real_npm_tells_its_registry(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    environ = {"PATH": os.environ["PATH"]}
    told = subprocess.run(
        [npm, "config", "get", "registry"],
        cwd="/", env={**environ, "HOME": str(other)}, capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (preset,) = resolve(["npm"], environ=environ, home=home, repository_top=None)
    assert any(f"//{rule.pattern.host}" in told for rule in preset.rules)
    assert not list(home.iterdir()), "npm left something in the home"


def test_the_real_npm_takes_the_variables(world: World) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    world.write(
        world.home / ".npmrc", "registry=http://localhost:4873/\n@team:registry=https://team.example.org/x/\n"
    )
    env = {"PATH": os.environ["PATH"], "HOME": str(world.system), **world.one("npm").env}
    for key, expected in (
        ("registry", f"http://{HOST_ALIAS}:4873/"),
        ("@team:registry", "https://team.example.org/x/"),
    ):
        answer = subprocess.run(
            [npm, "config", "get", key], cwd="/", env=env, capture_output=True, text=True, check=True
        )
        assert answer.stdout.strip() == expected


def test_the_real_pip_tells_both_of_its_hosts(tmp_path: Path) -> None:
    try:
        from pip._internal.models.index import PyPI
    except ImportError:
        pytest.skip("this python has no pip")
    environ = {"PATH": str(Path(sys.executable).parent)}
    (preset,) = resolve(
        ["pip"], environ=environ, home=tmp_path, repository_top=None, system=tmp_path / "nothing"
    )
    assert {rule.pattern.host for rule in preset.rules} == {
        PyPI.simple_url.split("/")[2],
        PyPI.file_storage_domain,
    }


def test_the_real_pip_takes_the_variables(world: World) -> None:
    world.environ |= {
        "PIP_INDEX_URL": "http://localhost:3141/simple",
        "PIP_EXTRA_INDEX_URL": "https://a.example.org/simple https://b.example.org/simple",
    }
    preset = world.one("pip")
    env = {"HOME": str(world.system), **preset.env}
    asked = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], cwd="/", env=env, capture_output=True, text=True
    )
    if asked.returncode != 0:
        pytest.skip("this python has no pip")
    told = asked.stdout
    assert f":env:.index-url='http://{HOST_ALIAS}:3141/simple'" in told
    assert f":env:.trusted-host='{HOST_ALIAS}:3141'" in told
    assert "a.example.org/simple https://b.example.org/simple" in told


def test_the_real_cargo_tells_its_index_without_a_network(tmp_path: Path) -> None:
    cargo = shutil.which("cargo")
    if cargo is None:
        pytest.skip("cargo is not installed")
    environ = {key: os.environ[key] for key in ("PATH", "RUSTUP_HOME") if key in os.environ}
    environ.setdefault("RUSTUP_HOME", str(Path("~/.rustup").expanduser()))
    answers = subprocess.run(
        [cargo, "--version"], env={**environ, "HOME": str(tmp_path)}, capture_output=True
    )
    if answers.returncode != 0:
        pytest.skip("cargo has no toolchain")
    home = tmp_path / "home"
    home.mkdir()
    (preset,) = resolve(["cargo"], environ=environ, home=home, repository_top=None)
    assert [rule.where for rule in preset.rules] == ["preset cargo (cargo's own default)"]
    assert not list(home.iterdir()), "cargo left something in the home"


# ------------------------------------------------------------------ refusals


def test_an_unknown_name_is_refused_with_the_list() -> None:
    with pytest.raises(UsageError) as caught:
        resolve(["npm", "bower"], environ={}, home=Path("/"), repository_top=None)
    assert "bower" in caught.value.brief
    assert all(name in (caught.value.resolution or "") for name in NAMES)


def test_no_names_are_no_presets(world: World) -> None:
    assert world.resolve() == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_without_a_host_is_refused(name: str, world: World, home: Path) -> None:
    if name == "git-remote":
        git(world.repository, "init", "--quiet")
    words = world.refusal(name)
    assert f"preset {name} found no host" in words
    assert "Looked at: " in words
    assert "--allow-domain" in words


BAD_URLS = {
    "a password with a slash": f"https://me:pa/{SECRET}@npm.example.org/",
    "a password and a bad port": f"https://me:{SECRET}@npm.example.org:port/",
    "a password and a bad host": f"https://me:{SECRET}@npm..example.org/",
    "an empty host": f"https://{SECRET}@/",
    "another scheme": f"ftp://me:{SECRET}@npm.example.org/",
    "a script": f"javascript:{SECRET}",
    "a space": f"https://npm.example.org/ {SECRET}",
    "a line feed": "https://npm.example.org/\\n",
    "a control character": "https://npm\x1b[31m.example.org/",
    "a bidi character": "https://npm\u202e.example.org/",
    "a backslash": "https://npm.example.org\\@evil.example.org/",
    "a star": "https://*.example.org/",
    "a number for an address": "https://2130706433/",
    "half an address": "https://127.1/",
    "a zone": "https://[fe80::1%25eth0]/",
    "an open bracket": "https://[::1/",
    "port zero": "https://npm.example.org:0/",
    "an empty port": "https://npm.example.org:/",
    "a huge port": "https://npm.example.org:99999/",
    "a percent in the host": "https://npm%2eexample.org/",
    "an endless name": f"https://{'a' * 64}.example.org/",
    "an endless URL": f"https://npm.example.org/{'a' * 4096}",
}


@pytest.mark.parametrize("case", BAD_URLS)
@pytest.mark.parametrize("name", ["npm", "pip", "cargo", "go", "docker"])
def test_a_url_that_can_not_be_used_is_an_error_that_does_not_show_it(
    name: str, case: str, world: World
) -> None:
    url = BAD_URLS[case]
    match name:
        case "npm":
            world.write(world.home / ".npmrc", f"registry={url}\n")
        case "pip":
            world.environ["PIP_INDEX_URL"] = url if "://" in url else f"x://{url}"
        case "cargo":
            world.environ["CARGO_REGISTRIES_X_INDEX"] = url
        case "go":
            world.environ |= {"GOPROXY": url, "GOSUMDB": "off"}
        case _:
            world.write(world.home / ".docker/config.json", json.dumps({"auths": {url: {}}}))
    words = world.refusal(name)
    assert SECRET not in words
    assert "\x1b" not in words
    assert "--allow-domain" in words


def test_user_information_and_queries_go_nowhere(world: World) -> None:
    world.write(
        world.home / ".npmrc",
        f"registry=https://me:{SECRET}@npm.example.org/npm/?token={SECRET}#x\n"
        f"@a:registry=https://a.example.org/\n//a.example.org/:_authToken={SECRET}\n",
    )
    world.environ |= {
        "PIP_INDEX_URL": f"http://{SECRET}@pip.example.org/simple",
        "GOPROXY": f"https://me:{SECRET}@go.example.org,direct",
        "GOSUMDB": f"sum.example.org https://me:{SECRET}@sum.example.org/",
        "CARGO_REGISTRIES_X_INDEX": f"sparse+https://me:{SECRET}@cargo.example.org/",
    }
    presets = world.resolve("npm", "pip", "go", "cargo")
    assert SECRET not in repr(presets)
    assert {rule.pattern.host for preset in presets for rule in preset.rules} >= {
        "npm.example.org",
        "pip.example.org",
        "go.example.org",
        "sum.example.org",
        "cargo.example.org",
    }
    notes = "\n".join(note for preset in presets for note in preset.notes)
    for host in ("npm", "a", "pip", "go", "sum", "cargo"):
        assert f"the credentials for {host}.example.org:443 stay outside" in notes.replace(":80 ", ":443 ")
    assert presets[0].env["NPM_CONFIG_REGISTRY"] == "https://npm.example.org/npm/"


def test_a_remotes_password_goes_nowhere(world: World, home: Path) -> None:
    git(world.repository, "init", "--quiet")
    git(world.repository, "remote", "add", "origin", f"https://me:{SECRET}@git.example.org/p")
    preset = world.one("git-remote")
    assert SECRET not in repr(preset)
    assert "the credentials for git.example.org:443 stay outside" in "".join(preset.notes)


@given(
    before=st.text(max_size=40),
    scheme=st.sampled_from(["https://", "http://u:", "https://[::1]/", ""]),
    after=st.text(max_size=40),
)
@example(before="", scheme="https://", after="npm.example.org/")
def test_what_stands_before_an_at_sign_is_never_seen(before: str, scheme: str, after: str) -> None:
    said = []
    try:
        url = read_url(f"{scheme}{before}{SECRET}@{after}", where="here")
        said += [repr(url), url.inside, url.target]
        assert url.credentials
    except EgressError as error:
        said += [error.brief, f"{error.details}", f"{error.__cause__}"]
    assert said
    assert SECRET not in "".join(said)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(10 << 20)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _directory(path: Path) -> None:
    path.mkdir()


def _bytes(path: Path) -> None:
    path.write_bytes(f"registry = {SECRET}\xff\n".encode("latin-1"))


def _nul(path: Path) -> None:
    path.write_bytes(f"registry = {SECRET}\0\n".encode())


def _deep(path: Path) -> None:
    path.write_text("[" * 100_000 + SECRET)


FILES = {
    "npm": "home/.npmrc",
    "pip": "home/.config/pip/pip.conf",
    "cargo": "home/.cargo/config.toml",
    "go": "home/.config/go/env",
    "docker": "home/.docker/config.json",
    "apt": "system/etc/apt/sources.list",
}


@pytest.mark.parametrize("make", [_fifo, _huge, _device, _directory, _bytes, _nul])
@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_an_error_at_once(name: str, make: Callable[[Path], None], world: World) -> None:
    path = world.home.parent / FILES[name]
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    began = time.monotonic()
    words = world.refusal(name)
    assert time.monotonic() - began < 60
    assert f"{path} can't be used" in words
    assert SECRET not in words


@pytest.mark.parametrize(
    ("name", "path", "text"),
    [
        ("pip", FILES["pip"], f"index-url = https://me:{SECRET}@pip.example.org\n"),
        ("pip", "home/.config/uv/uv.toml", f'index-url = "https://me:{SECRET}@uv.example.org\n'),
        ("pip", "home/.config/uv/uv.toml", f'extra-index-url = {{ a = "{SECRET}" }}\nindex = 3\n'),
        ("cargo", FILES["cargo"], f'[registries]\nx = "{SECRET}"\nx = 2\n'),
        ("cargo", FILES["cargo"], '[source]\ncrates-io.replace-with = "b"\nb.replace-with = "crates-io"\n'),
        ("docker", FILES["docker"], f'{{"auths": {{"{SECRET}": '),
        ("docker", FILES["docker"], '{"auths": ["x"]}'),
        ("docker", FILES["docker"], "[]"),
        ("docker", FILES["docker"], "[" * 100_000),
        ("docker", "system/etc/docker/daemon.json", '{"registry-mirrors": "x"}'),
        ("docker", "home/.config/containers/registries.conf", 'registry = ["x"]\n'),
        ("npm", FILES["npm"], "registry=https://${NOT_SET}/\n"),
        ("go", FILES["go"], f"GOPROXY=off\nGOSUMDB=a b {SECRET} c\n"),
    ],
)
def test_a_malformed_file_is_an_error_that_does_not_quote_it(
    name: str, path: str, text: str, world: World
) -> None:
    world.write(world.home.parent / path, text)
    words = world.refusal(name)
    assert SECRET not in words
    assert "found no host" not in words
    assert "--allow-domain" in words


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("npm", "NPM_CONFIG_USERCONFIG"),
        ("npm", "npm_config_globalconfig"),
        ("pip", "PIP_CONFIG_FILE"),
        ("pip", "UV_CONFIG_FILE"),
        ("cargo", "CARGO_HOME"),
        ("go", "GOENV"),
        ("docker", "DOCKER_CONFIG"),
        ("docker", "XDG_RUNTIME_DIR"),
        ("docker", "REGISTRY_AUTH_FILE"),
        ("docker", "CONTAINERS_REGISTRIES_CONF"),
    ],
)
def test_a_configuration_of_the_repository_does_not_count(name: str, variable: str, world: World) -> None:
    theirs = world.write(world.repository / "configuration", "registry=https://evil.example.org/\n")
    link = world.home / "link"
    link.symlink_to(theirs)
    for value in (str(theirs), str(link), "configuration", f"{world.home}/../repository/configuration"):
        world.environ[variable] = value
        assert f"{variable} must name an absolute path outside of the repository" in world.refusal(name)


def test_directories_of_configuration_in_the_repository_do_not_count(world: World) -> None:
    theirs = world.repository / "config"
    world.write(theirs / "pip/pip.conf", "[global]\nindex-url = http://evil.example.org/simple\n")
    world.environ["XDG_CONFIG_DIRS"] = f"{theirs}"
    assert "found no host" in world.refusal("pip")
    world.environ["XDG_CONFIG_HOME"] = f"{theirs}"
    assert "XDG_CONFIG_HOME must name" in world.refusal("pip")
    # The control: outside of the repository both do.
    theirs.rename(world.home / "config")
    for variable in ("XDG_CONFIG_DIRS", "XDG_CONFIG_HOME"):
        world.environ |= {"XDG_CONFIG_DIRS": "", "XDG_CONFIG_HOME": "", variable: f"{world.home / 'config'}"}
        assert hosts(world.one("pip")) == {"evil.example.org:80"}


def test_the_repositorys_own_npmrc_does_not_count(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(world.repository / ".npmrc", "registry=https://evil.example.org/\n")
    world.write(world.home / ".npmrc", "registry=https://npm.example.org/\n")
    monkeypatch.chdir(world.repository)
    assert hosts(world.one("npm")) == {"npm.example.org:443"}


def test_scopes_that_no_variable_can_name_are_said(world: World) -> None:
    world.write(world.home / ".npmrc", "@my_team:registry=https://npm.example.org/\n")
    preset = world.one("npm")
    assert not preset.env
    assert "@my_team" in preset.notes[0]
