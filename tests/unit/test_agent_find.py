"""Claude Code is found in every layout that its installers make, as one native program."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clsecure.agents.digests import Known, cache_directory, recall, remember, sha256_of
from clsecure.agents.find import AgentBinary, BinaryKind, agents_directory, find_agent
from clsecure.agents.npm_package import platform_packages
from clsecure.agents.spec import AGENTS
from clsecure.errors import AgentError

CLAUDE = AGENTS["claude"]
TRUE = Path("/bin/true").resolve()
PLATFORM, PLATFORM_MUSL = platform_packages(os.uname().machine)


def native(path: Path) -> Path:
    """Put a tiny real program there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TRUE, path)
    path.chmod(0o755)
    return path


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def package(directory: Path, name: str, version: str = "2.1.197") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "package.json").write_text(json.dumps({"name": name, "version": version}))
    return directory


def link(path: Path, target: str | Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def npm_global(prefix: Path, *, stub: bool, platform: str | None = None) -> Path:
    """`npm install -g`: the program in place of the stub, or (scripts off) in the platform's package."""
    top = package(prefix / "lib/node_modules/@anthropic-ai/claude-code", "@anthropic-ai/claude-code")
    if stub:
        script(top / "bin/claude.exe", "#!/bin/sh\necho 'native binary not installed' >&2\nexit 1\n")
    else:
        native(top / "bin/claude.exe")
    if platform is not None:
        inner = package(top / "node_modules" / platform, platform)
        native(inner / "claude")
    link(prefix / "bin/claude", "../lib/node_modules/@anthropic-ai/claude-code/bin/claude.exe")
    return top


def find(home: Path, *path: Path, exclude: tuple[Path, ...] = (), **environ: str) -> AgentBinary:
    search = ":".join(str(entry) for entry in path)
    return find_agent(CLAUDE, {"PATH": search, **environ}, home, exclude=exclude, elsewhere=())


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_an_npm_installation(home: Path) -> None:
    top = npm_global(home / ".npm-global", stub=False)
    found = find(home, home / ".npm-global/bin")
    assert found == AgentBinary(path=top / "bin/claude.exe", version="2.1.197", kind=BinaryKind.NPM)


@pytest.mark.parametrize("where", [".npm-global", ".nvm/versions/node/v20.1.0"])
def test_an_npm_installation_that_the_path_does_not_name(home: Path, where: str) -> None:
    npm_global(home / where, stub=False)
    assert find(home).kind is BinaryKind.NPM


def test_the_newest_node_of_nvm_wins(home: Path) -> None:
    npm_global(home / ".nvm/versions/node/v9.11.2", stub=False)
    npm_global(home / ".nvm/versions/node/v20.1.0", stub=False)
    assert "v20.1.0" in str(find(home).path)


def test_an_npm_installation_without_scripts_has_its_program_in_the_platforms_package(home: Path) -> None:
    top = npm_global(home / "prefix", stub=True, platform=PLATFORM)
    found = find(home, home / "prefix/bin")
    assert found.path == top / "node_modules" / PLATFORM / "claude"
    assert (found.version, found.kind) == ("2.1.197", BinaryKind.NPM)


def test_a_local_npm_installation_has_the_platforms_package_beside_it(home: Path) -> None:
    modules = home / ".claude/local/node_modules"
    top = package(modules / "@anthropic-ai/claude-code", "@anthropic-ai/claude-code")
    script(top / "cli-wrapper.cjs", "#!/usr/bin/env node\n")
    program = native(package(modules / PLATFORM, PLATFORM) / "claude")
    link(modules / ".bin/claude", "../@anthropic-ai/claude-code/cli-wrapper.cjs")
    script(home / ".claude/local/claude", f'#!/bin/bash\nexec "{modules}/.bin/claude" "$@"\n')
    assert find(home).path == program


def test_a_pnpm_installation_hands_over_from_its_own_directory(home: Path) -> None:
    store = home / ".local/share/pnpm/global/5/.pnpm/@anthropic-ai+claude-code@2.1.197/node_modules"
    package(store / "@anthropic-ai/claude-code", "@anthropic-ai/claude-code")
    script(store / "@anthropic-ai/claude-code/cli-wrapper.cjs", "#!/usr/bin/env node\n")
    program = native(package(store / PLATFORM, PLATFORM) / "claude")
    link(
        home / ".local/share/pnpm/global/5/node_modules/@anthropic-ai/claude-code",
        store / "@anthropic-ai/claude-code",
    )
    inner = "$basedir/global/5/node_modules/@anthropic-ai/claude-code/cli-wrapper.cjs"
    script(
        home / ".local/share/pnpm/claude",
        '#!/bin/sh\nbasedir=$(dirname "$(echo "$0" | sed -e \'s,\\\\,/,g\')")\n'
        f'if [ -x "$basedir/node" ]; then\n  exec "$basedir/node"  "{inner}" "$@"\n'
        f'else\n  exec node  "{inner}" "$@"\nfi\n',
    )
    assert find(home, home / ".local/share/pnpm").path == program


def test_the_native_installer(home: Path) -> None:
    program = native(home / ".local/share/claude/versions/2.1.197")
    link(home / ".local/bin/claude", program)
    found = find(home, home / ".local/bin")
    assert found == AgentBinary(path=program, version="2.1.197", kind=BinaryKind.NATIVE)
    assert find(home) == found


def test_homebrew(home: Path, tmp_path: Path) -> None:
    brew = tmp_path / "linuxbrew/.linuxbrew"
    program = native(brew / "Caskroom/claude-code/2.1.197/claude")
    link(brew / "bin/claude", program)
    found = find(home, brew / "bin")
    assert found == AgentBinary(path=program, version="2.1.197", kind=BinaryKind.HOMEBREW)


def test_volta_puts_a_program_of_its_own_on_the_path(home: Path) -> None:
    native(home / ".volta/bin/volta-shim")
    link(home / ".volta/bin/claude", "volta-shim")
    with pytest.raises(AgentError, match="not in a form"):
        find(home, home / ".volta/bin")
    top = npm_global(home / ".volta/tools/image/packages/@anthropic-ai/claude-code", stub=False)
    assert find(home, home / ".volta/bin").path == top / "bin/claude.exe"


def test_what_clsecure_installed_is_found_and_the_newest_wins(home: Path) -> None:
    directory = agents_directory({}, home) / "claude"
    for version in ("2.1.9", "2.1.197"):
        native(package(directory / version, PLATFORM, version) / "claude")
    found = find(home)
    assert (found.version, found.kind) == ("2.1.197", BinaryKind.CLSECURE)


def test_an_old_release_of_scripts_names_the_command_that_helps(home: Path) -> None:
    top = package(home / "p/lib/node_modules/@anthropic-ai/claude-code", "@anthropic-ai/claude-code", "1.0.3")
    script(top / "cli.js", "#!/usr/bin/env node\n")
    link(home / "p/bin/claude", top / "cli.js")
    with pytest.raises(AgentError) as caught:
        find(home, home / "p/bin")
    assert caught.value.resolution == "clsecure agent install claude"
    assert "old release" in (caught.value.details or "")


def test_an_old_release_gives_way_to_what_clsecure_installed(home: Path) -> None:
    top = package(home / "p/lib/node_modules/@anthropic-ai/claude-code", "@anthropic-ai/claude-code", "1.0.3")
    link(home / "p/bin/claude", script(top / "cli.js", "#!/usr/bin/env node\n"))
    native(package(agents_directory({}, home) / "claude/2.1.197", PLATFORM) / "claude")
    assert find(home, home / "p/bin").kind is BinaryKind.CLSECURE


def test_nothing_installed_names_the_command_that_helps(home: Path) -> None:
    with pytest.raises(AgentError, match="not installed") as caught:
        find(home, home / "bin")
    assert caught.value.resolution == "clsecure agent install claude"


def test_a_program_of_the_repository_does_not_count(home: Path, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    native(package(repository / "node_modules" / PLATFORM, PLATFORM) / "claude")
    link(repository / "node_modules/.bin/claude", repository / "node_modules" / PLATFORM / "claude")
    link(tmp_path / "bin/claude", repository / "node_modules/.bin/claude")
    with pytest.raises(AgentError) as caught:
        find(home, repository / "node_modules/.bin", tmp_path / "bin", exclude=(repository,))
    assert (caught.value.details or "").count("belongs to the repository") == 2


def test_relative_entries_of_the_path_are_skipped(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native(tmp_path / "here/versions/2.1.197")
    link(tmp_path / "here/claude", "versions/2.1.197")
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(AgentError, match="not installed"):
        find_agent(CLAUDE, {"PATH": ".::here"}, home, elsewhere=())


@pytest.mark.parametrize("kind", ["directory", "fifo", "dangling", "circle", "text", "empty"])
def test_what_is_no_program_is_passed_over(home: Path, kind: str) -> None:
    place = home / "bin/claude"
    place.parent.mkdir()
    match kind:
        case "directory":
            place.mkdir()
        case "fifo":
            os.mkfifo(place)
        case "dangling":
            place.symlink_to("nowhere")
        case "circle":
            place.symlink_to(place)
        case "text":
            script(place, "not a script")
        case _:
            place.touch(mode=0o755)
    with pytest.raises(AgentError, match="not in a form"):
        find(home, place.parent)
    program = native(home / ".local/share/claude/versions/2.1.197")
    link(home / ".local/bin/claude", program)
    assert find(home, place.parent).path == program


def test_wrappers_that_call_each_other_end(home: Path) -> None:
    script(home / "bin/claude", f'#!/bin/sh\nexec "{home}/bin/other" "$@"\n')
    script(home / "bin/other", f'#!/bin/sh\nexec "{home}/bin/claude" "$@"\n')
    with pytest.raises(AgentError, match="not in a form"):
        find(home, home / "bin")


def test_a_program_for_another_machine_or_c_library_is_named(home: Path) -> None:
    program = native(home / ".local/share/claude/versions/2.1.197")
    link(home / ".local/bin/claude", program)
    data = bytearray(program.read_bytes())
    struct.pack_into("<H", data, 18, 0xF3)
    program.write_bytes(data)
    with pytest.raises(AgentError) as caught:
        find(home)
    assert "built for e_machine 243" in (caught.value.details or "")
    data = bytearray(TRUE.read_bytes())
    old = data.index(b"/lib64/ld-linux-x86-64.so.2\0") if os.uname().machine == "x86_64" else -1
    if old >= 0:
        new = b"/lib/ld-musl-none.so.1\0"
        data[old : old + len(new)] = new
        program.write_bytes(data)
        with pytest.raises(AgentError) as caught:
            find(home)
        assert "built for musl" in (caught.value.details or "")


LOOK = f"""
import os, pathlib, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
if sys.argv[1] != "root":
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
from clsecure.agents.find import find_agent
from clsecure.agents.spec import AGENTS
from clsecure.errors import AgentError
home = pathlib.Path(sys.argv[2])
try:
    print(find_agent(AGENTS["claude"], {{"PATH": str(home / "bin")}}, home, elsewhere=()).version)
except AgentError as error:
    print(error.details)
"""


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A home that an account without rights can reach; the tests' own directories can't be."""
    directory = Path(tempfile.mkdtemp(prefix="clsecure-test-find-"))
    directory.chmod(0o755)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def look_as(who: str, home: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOOK, who, str(home)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.root
def test_a_program_at_an_unusual_place_is_asked_who_it_is_but_never_as_root(open_home: Path) -> None:
    native(open_home / "bin/claude")
    assert look_as("root", open_home) == "unknown"
    # /bin/true answers nothing, which is not what Claude Code answers.
    assert "does not answer as Claude Code" in look_as("nobody", open_home)


@pytest.mark.root
def test_a_program_that_anybody_could_replace_is_not_executed(open_home: Path) -> None:
    native(open_home / "bin/claude").chmod(0o757)
    assert look_as("nobody", open_home) == "unknown"


@pytest.mark.root
@pytest.mark.slow
def test_the_real_program_at_an_unusual_place_says_its_version(open_home: Path, claude_binary: Path) -> None:
    (open_home / "bin").mkdir()
    shutil.copyfile(claude_binary, open_home / "bin/claude")
    (open_home / "bin/claude").chmod(0o755)
    (open_home / ".cache").mkdir()
    (open_home / ".cache").chmod(0o777)
    assert re.fullmatch(r"2\.[0-9.]+", look_as("nobody", open_home))
    cached = (open_home / ".cache/clsecure/agents.json").read_text()
    assert '"version": "2.' in cached
    assert sorted(entry.name for entry in open_home.iterdir()) == [".cache", "bin"], "it wrote no state"


def test_the_digest_is_remembered_for_the_file_in_this_state(home: Path) -> None:
    program = native(home / "claude")
    cache = cache_directory({}, home)
    right = subprocess.run(["sha256sum", program], capture_output=True, text=True, check=True).stdout[:64]
    assert sha256_of(program, cache=cache) == right
    file = cache / "agents.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    forged = json.loads(file.read_text())
    for entry in forged.values():
        entry["sha256"] = "0" * 64
    file.write_text(json.dumps(forged))
    assert sha256_of(program, cache=cache) == "0" * 64, "it came from the cache"
    times = program.stat()
    with program.open("ab") as out:
        out.write(b"x")
    program.write_bytes(TRUE.read_bytes())
    os.utime(program, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert sha256_of(program, cache=cache) == right, "a time that was set back does not deceive"


@pytest.mark.parametrize("damage", ["text", "huge", "shape", "values", "writable", "fifo", "link", "nested"])
def test_a_damaged_cache_is_no_cache(home: Path, damage: str) -> None:
    program = native(home / "claude")
    cache = cache_directory({}, home)
    right = sha256_of(program, cache=cache)
    file = cache / "agents.json"
    entries = json.loads(file.read_text())
    for entry in entries.values():
        entry["sha256"] = "0" * 64
    match damage:
        case "text":
            file.write_text("{")
        case "huge":
            file.write_text(json.dumps(entries) + " " * (1 << 17))
        case "shape":
            file.write_text(json.dumps([entries]))
        case "values":
            file.write_text(json.dumps({key: {"sha256": "../etc"} for key in entries}))
        case "writable":
            file.write_text(json.dumps(entries))
            file.chmod(0o666)
        case "fifo":
            file.unlink()
            os.mkfifo(file)
        case "link":
            file.write_text(json.dumps(entries))
            file.rename(cache / "elsewhere.json")
            file.symlink_to("elsewhere.json")
        case _:
            file.write_text("[" * 60_000)
    assert sha256_of(program, cache=cache) == right


def test_the_cache_stays_small_and_a_place_that_cannot_be_written_is_no_failure(home: Path) -> None:
    cache = cache_directory({}, home)
    for number in range(40):
        program = native(home / f"claude{number}")
        remember(program.stat(), Known(version="2.1.197"), cache=cache)
    assert len(json.loads((cache / "agents.json").read_text())) == 32
    assert recall(program.stat(), cache=cache).version == "2.1.197"
    (home / "file").touch()
    assert len(sha256_of(program, cache=home / "file/cache")) == 64
