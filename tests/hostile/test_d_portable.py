"""D: agent files that are rewritten in the copy, where the agent turns on what takes the rewriting back."""

from __future__ import annotations

import itertools
import json

import pytest

from tests.support.homecoming import Marker, branch_of, files_in, generic_rule, session_key
from tests.support.hostile import Target

pytestmark = pytest.mark.root

_numbers = itertools.count()
NVM = "/home/somebody/.nvm/versions/node/v20.11.0/bin/node"
SERVERS = json.dumps({"mcpServers": {"a": {"command": NVM, "args": ["a.js"]}}}, indent=2).encode()
HOOK = {"type": "command", "command": "./src/run.sh"}
HOOKS = json.dumps({"hooks": {"Stop": [{"hooks": [HOOK]}]}}).encode()


@pytest.fixture
def portable(target: Target) -> Target:
    """The same target with a repository that has such files."""
    person = target.person
    top = person.repository(f"portable{next(_numbers)}-{target.mode}")
    person.run(["mkdir", "-p", str(top / ".claude")]).check()
    person.write(top / ".mcp.json", SERVERS)
    person.write(top / ".claude/settings.json", HOOKS)
    person.git(top, "add", "-A")
    person.git(top, "commit", "-qm", "Agent files")
    return Target(person=person, mode=target.mode, repository=top)


def test_d3_d24_what_takes_the_rewriting_back_is_replaced_by_the_agent(portable):
    """Configuration, attributes, rules and the files themselves: nothing runs, and the work is exact."""
    person, top = portable.person, portable.repository
    marker = Marker.of(person)
    attack = f"""
        set -e
        grep -q '"node"' .mcp.json && grep -q "$PWD/src/run.sh" .claude/settings.json
        test -z "$(git status --porcelain)"
        printf '%s\\n' '* filter=evil' '/.mcp.json filter=clsecure-portable' >.git/info/attributes
        echo '{{".mcp.json": [{{}}]}}' >.git/clsecure-portable.json
        for key in filter.evil.clean filter.clsecure-portable.clean filter.clsecure-portable.smudge \
            filter.clsecure-portable.process core.fsmonitor; do
            git config $key "{marker.command()}"
        done
        git add -A >/dev/null 2>&1 || :
        test -s ~/M && rm ~/M
        git reset -q --hard 2>/dev/null || :
        echo '{SERVERS.decode().replace(NVM, "node").replace("a.js", "b.js")}' >.mcp.json
        rm .claude/settings.json && ln -s /etc/passwd .claude/settings.json
        rm -f ~/M
    """
    with generic_rule(top) as branches:
        ran = portable.attack(attack, finish="import")
        assert ran.status == 0, ran.said
        branches.append(branch_of(ran.outcome.check()))
    assert marker.sprung(portable.account()["home"]) == []
    home = files_in(person, top, ran.result["import"]["tip"])
    assert home[b".mcp.json"] == (0o100644, SERVERS.replace(b"a.js", b"b.js") + b"\n")
    assert home[b".claude/settings.json"] == (0o120000, b"/etc/passwd")
    person.clsecure("cleanup", session_key(portable), "--yes").check()


def test_d16_a_fifo_and_a_file_without_end_in_the_place_of_such_files(portable):
    """Neither keeps the rest of the work from coming home."""
    person, top = portable.person, portable.repository
    attack = """
        rm .mcp.json && mkfifo .mcp.json
        truncate -s 100G .claude/settings.json && echo work >work
    """
    with generic_rule(top) as branches:
        ran = portable.attack(attack, finish="import")
        branches.append(branch_of(ran.outcome.check()))
    made = ran.result["import"]
    assert b"work" in files_in(person, top, made["tip"])
    assert any(".claude/settings.json" in refused for refused in made["refused"])
    person.clsecure("cleanup", session_key(portable), "--yes").check()
