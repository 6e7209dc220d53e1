"""Which package managers a work tree asks for, and with what: ``prepare.py`` with stand-ins on the PATH."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from clsecure.session.dependencies import read_report

PREPARE = Path(__file__).resolve().parents[2] / "clsecure" / "privileged" / "prepare.py"
MANAGERS = ("npm", "pnpm", "yarn", "pip", "uv", "poetry", "cargo", "go", "bundle")
# A stand-in writes down how it was called, with the variables that matter.
STAND_IN = """#!/bin/sh
set -- "$(basename "$0")" "$@"
for name in GOFLAGS BUNDLE_FROZEN UV_PROJECT_ENVIRONMENT VIRTUAL_ENV YARN_ENABLE_GLOBAL_CACHE; do
    eval "value=\\${$name-}"
    [ -z "$value" ] || set -- "$@" "$name=$value"
done
echo "$*" >>"$HOME/calls"
[ ! -t 0 ] && ! read -r line && echo "$1 speaks"
"""


class Tree:
    """A work tree, and a home beside it."""

    def __init__(self, top: Path) -> None:
        self.home, self.work, self.bin = top / "home", top / "work", top / "bin"
        for directory in (self.home, self.work, self.bin):
            directory.mkdir()
        self.venv = str(self.home / "venv")
        self.errors = ""
        subprocess.run(["git", "init", "--quiet", self.work], check=True)

    def install(self, *names: str, text: str = STAND_IN) -> None:
        for name in names:
            (self.bin / name).write_text(text)
            (self.bin / name).chmod(0o755)

    def write(self, files: Mapping[str, str]) -> None:
        for name, text in files.items():
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).write_text(text)

    def prepare(self) -> list[dict[str, Any]]:
        """Run it; return what it says."""
        env = {"PATH": f"{self.bin}:/usr/bin:/bin", "HOME": str(self.home), "TMPDIR": str(self.home)}
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-S", PREPARE, "dependencies", self.venv],
            cwd=self.work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.errors = done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    @property
    def calls(self) -> list[str]:
        path = self.home / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.replace(self.venv, "VENV") for line in lines]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("files", "calls"),
    [
        ({"package.json": "{}", "package-lock.json": "{}"}, ["npm ci --no-audit --no-fund"]),
        ({"package.json": "{}", "npm-shrinkwrap.json": "{}"}, ["npm ci --no-audit --no-fund"]),
        ({"package.json": "{}"}, ["npm install --no-package-lock --no-audit --no-fund"]),
        ({"package.json": "{}", "pnpm-lock.yaml": ""}, ["pnpm install --frozen-lockfile"]),
        (
            {"package.json": "{}", "yarn.lock": "# yarn lockfile v1\n"},
            ["yarn install --non-interactive --frozen-lockfile"],
        ),
        (
            {"package.json": "{}", "yarn.lock": "__metadata:\n  version: 8\n"},
            ["yarn install --immutable YARN_ENABLE_GLOBAL_CACHE=true"],
        ),
        # What the project says of itself decides between several lock files.
        (
            {"package.json": '{"packageManager": "npm@10.1.0"}', "package-lock.json": "", "yarn.lock": ""},
            ["npm ci --no-audit --no-fund"],
        ),
        ({"package.json": '{"packageManager": "pnpm@9.0.0"}'}, ["pnpm install --lockfile=false"]),
        (
            {"uv.lock": "", "pyproject.toml": "", "requirements.txt": ""},
            ["uv sync --frozen UV_PROJECT_ENVIRONMENT=VENV"],
        ),
        ({"poetry.lock": "", "pyproject.toml": ""}, ["poetry install --no-interaction VIRTUAL_ENV=VENV"]),
        ({"Cargo.lock": "", "Cargo.toml": ""}, ["cargo fetch --locked"]),
        ({"go.mod": ""}, ["go mod download GOFLAGS=-mod=readonly"]),
        ({"Gemfile": "", "Gemfile.lock": ""}, ["bundle install BUNDLE_FROZEN=true"]),
        ({"Cargo.toml": "", "Gemfile": "", "pyproject.toml": "[tool.black]\n", "yarn.lock": ""}, []),
    ],
)  # fmt: skip
def test_each_lock_file_has_its_manager_and_is_not_rewritten(
    tree: Tree, files: dict[str, str], calls: list[str]
) -> None:
    tree.install(*MANAGERS)
    tree.write(files)
    said = tree.prepare()
    assert tree.calls == calls
    assert [entry["status"] for entry in said if "status" in entry] == ["begun", "ok"] * len(calls)


def test_several_languages_are_installed_one_after_the_other_and_one_failure_is_its_own(tree: Tree) -> None:
    tree.install("npm", "go")
    tree.install("cargo", text="#!/bin/sh\necho cargo broke >&2\nexit 101\n")
    tree.write({"package.json": "{}", "Cargo.lock": "", "go.mod": "", "Gemfile.lock": ""})
    said = [
        (e["step"], e["status"], e.get("exit_code"))
        for e in tree.prepare()
        if e.get("status") != "begun" and "step" in e
    ]
    assert said == [("npm", "ok", 0), ("cargo", "failed", 101), ("go", "ok", 0), ("bundler", "missing", None)]
    assert "cargo broke" in tree.errors


def test_a_missing_manager_is_named(tree: Tree) -> None:
    tree.write({"package.json": "{}", "pnpm-lock.yaml": "", "Gemfile.lock": ""})
    said = {e["step"]: e["why"] for e in tree.prepare() if "step" in e}
    assert said == {"pnpm": "pnpm is not installed inside", "bundler": "bundle is not installed inside"}


def test_files_behind_links_do_not_count(tree: Tree, tmp_path: Path) -> None:
    tree.install(*MANAGERS)
    (tmp_path / "elsewhere").write_text("{}")
    for name in ("package.json", "uv.lock", "go.mod", "Cargo.lock"):
        (tree.work / name).symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tree.work / "Gemfile.lock")
    (tree.work / "requirements.txt").mkdir()
    assert tree.prepare() == []
    assert tree.calls == []


def test_what_installing_makes_ignores_itself_and_what_was_there_stays(tree: Tree) -> None:
    made = "node_modules/x packages/a/node_modules new.egg-info sub/node_modules"
    tree.install("npm", text=f"#!/bin/sh\nmkdir -p {made}; echo >made\n")
    tree.write({"package.json": "{}", "sub/node_modules/own.js": "", "README": "x"})
    said = tree.prepare()
    assert [e["changed"] for e in said if "changed" in e] == [["made"]]
    for name in ("node_modules", "packages/a/node_modules", "new.egg-info"):
        assert (tree.work / name / ".gitignore").read_text().endswith("\n*\n")
    assert not (tree.work / "sub/node_modules/.gitignore").exists()
    status = subprocess.run(["git", "status", "--porcelain"], cwd=tree.work, capture_output=True, text=True)
    assert status.stdout.splitlines() == ["?? README", "?? made", "?? package.json", "?? sub/"]


def test_a_gitignore_is_not_written_through_a_link(tree: Tree, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    links = f"ln -s {outside} node_modules; ln -s {outside}/f b/node_modules/.gitignore"
    tree.install("npm", text=f"#!/bin/sh\nmkdir -p b/node_modules; {links}\n")
    tree.write({"package.json": "{}"})
    tree.prepare()
    assert list(outside.iterdir()) == []


def test_a_report_that_others_wrote_into_is_worth_words_and_no_more() -> None:
    lines = [
        b'{"step": "npm", "status": "failed", "exit_code": true, "seconds": Infinity}',
        *[b'{"step": "npm", "status": "failed", "exit_code": 1, "seconds": 1.0}'] * 150,
        b'{"step": ["npm"], "status": {"x": 1}}',
        b'{"step": "rm", "status": "ok"}',
        b'{"step": "go", "status": "missing", "why": ["' + b"y" * 5000 + b'"]}',
        b'{"step": "uv", "status": "ok", "exit_code": 99999, "seconds": ' + b"9" * 400 + b"}",
        b'{"step": "pip", "status": "ok", "exit_code": 0, "seconds": 1.5}',
        b'{"changed": ' + json.dumps(["z" * 9000] * 1000).encode() + b"}",
        b'{"venv": 1}',
        b"[" * 100_000,
        b"\xff\xfe no json",
        b'"text"',
    ]
    report = read_report(b"\n".join(lines), elapsed=10.0)
    said = [(each.name, each.status, each.exit_code, each.seconds) for each in report.outcomes]
    assert said == [
        ("npm", "failed", None, 0.0),
        ("go", "missing", None, 0.0),
        ("uv", "ok", None, 0.0),
        ("pip", "ok", 0, 1.5),
    ]
    assert max(len(each.why) for each in report.outcomes) == 200
    assert (len(report.changed), len(report.changed[0])) == (20, 200)
    assert report.venv is False
    assert read_report(b"", elapsed=0.0).outcomes == ()
