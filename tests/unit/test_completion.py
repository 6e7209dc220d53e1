"""Completions and the manual page are what the parser makes of them, and real shells complete with them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from clsecure.cli import generate
from clsecure.cli.commands.completion import FILES
from clsecure.cli.parsing.flags import OPTIONS
from clsecure.cli.verbs import COMMANDS, SHELLS
from tests.support.person import CHECKOUT

_STUB = """#!/bin/sh
[ "$1 $2" = "completion names" ] && echo Auth.2 && exit
[ "$1 $2" = "completion sessions" ] || exit 1
printf '%s\\n' app-0a1b2c other-3d4e5f 'x$(touch "$MARK")' 'y;touch $MARK'
"""
_BASH = """
source {script}
COMP_WORDS=({words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )) COMP_LINE='{line}' COMP_POINT={point}
_shtab_clsecure
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """An environment in which clsecure is a program that knows two sessions, and two hostile names."""
    stub = tmp_path / "clsecure"
    stub.write_text(_STUB)
    stub.chmod(0o755)
    return {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "MARK": str(tmp_path / "mark"),
        "LC_ALL": "C.UTF-8",
    }


def candidates(name: str, line: str, env: dict[str, str]) -> set[str]:
    """Return what a real shell offers at the end of a line."""
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    script = generate.COMPLETIONS / FILES[name]
    if name == "bash":
        words = " ".join(f"'{word}'" for word in line.split(" "))
        source = _BASH.format(script=script, words=words, line=line, point=len(line))
        argv = [program, "--norc", "--noprofile", "-c", source]
    else:
        argv = [program, "--no-config", "-c", f"source {script}; complete --do-complete '{line}'"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30)
    return {word.split("\t")[0] for word in done.stdout.splitlines()}


def test_what_is_generated_is_what_is_there() -> None:
    for path, text in generate.completions().items():
        assert path.read_text() == text, f"{path.name} is out of date: ./dev invoke shell"


def test_the_manual_page_knows_every_command_and_option() -> None:
    page = generate.MANUAL.read_text().replace("\\", "")
    for verb in COMMANDS:
        assert f"'clsecure {verb.value}'" in page, f"{verb} is missing: ./dev invoke shell"
    for option in OPTIONS:
        shown = re.findall(r"[A-Za-z]{4,}", option.help)[:6]
        assert option.name in page, option.name
        assert all(word in page for word in shown), option.name


@pytest.mark.parametrize("name", ["bash", "fish"])
def test_a_shell_completes_commands_values_and_sessions(name: str, shell: dict[str, str]) -> None:
    assert "import" in candidates(name, "clsecure im", shell)
    assert {"user", "namespace", "container", "auto"} <= candidates(name, "clsecure --mode ", shell)
    assert {"podman", "docker"} == candidates(name, "clsecure --engine ", shell)
    # Its value stands after "=", so the next word is another one.
    assert "--mode" in candidates(name, "clsecure --allow-docker --mo", shell)
    assert {"npm", "git-remote"} <= candidates(name, "clsecure --allow-preset ", shell)
    assert "watch" in candidates(name, "clsecure network w", shell)
    assert "Auth.2" in candidates(name, "clsecure --session ", shell)
    sessions = candidates(name, "clsecure import ", shell)
    assert {"app-0a1b2c", "other-3d4e5f"} <= sessions
    assert not Path(shell["MARK"]).exists()
    assert not [word for word in sessions if "$" in word or ";" in word]


def test_zsh_loads_the_completion_and_lists_sessions(shell: dict[str, str]) -> None:
    zsh = shutil.which("zsh")
    if zsh is None:
        pytest.skip("zsh is not installed")
    source = (
        f"autoload -Uz compinit && compinit -u -D; fpath=({generate.COMPLETIONS} $fpath); "
        f"source {generate.COMPLETIONS / FILES['zsh']} 2>/dev/null; compadd() {{ print -l -- ${{(P)2}} }}; "
        "_clsecure_sessions; (( $+functions[_shtab_clsecure] )) && print loaded"
    )
    done = subprocess.run([zsh, "-f", "-c", source], env=shell, capture_output=True, text=True, timeout=30)
    words = done.stdout.split()
    assert words == ["app-0a1b2c", "other-3d4e5f", "loaded"], done.stderr
    assert not Path(shell["MARK"]).exists()


@pytest.mark.parametrize("name", SHELLS)
def test_the_command_prints_the_completion(name: str) -> None:
    done = subprocess.run(
        [CHECKOUT / "dev", "clsecure", "completion", name], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == (generate.COMPLETIONS / FILES[name]).read_text(), done.stderr


def test_the_manual_page_has_no_mistake() -> None:
    if shutil.which("man") is None:
        pytest.skip("man is not installed")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", generate.MANUAL],
        env={"PATH": os.environ["PATH"], "MANWIDTH": "100", "LC_ALL": "C.UTF-8"},
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0
    assert done.stderr == b""
    assert b"--mode" in done.stdout
