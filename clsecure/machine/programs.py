"""Probes of the programs that sessions are made with."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path

from clsecure import process
from clsecure.errors import BackendUnavailableError
from clsecure.installation import find_installation, how_to_allow, how_to_install
from clsecure.machine.probe import (
    CONNECTORS,
    EVERY,
    NAMESPACE,
    Probe,
    ProbeStatus,
    absent,
    find_connector,
    find_program,
    install_command,
    is_setuid_root,
    read_small,
    user_namespaces_closed,
    versioned,
    words,
)
from clsecure.process import SYSTEM_PATH, Command

TUN = Path("/dev/net/tun")
"""Open to everybody where udev looks after it."""

MINIMUM_GIT = (2, 34)
MINIMUM_PYTHON = (3, 11)
MINIMUM_FIREJAIL = (0, 9, 72)


def probe_python() -> Probe:
    """The system's own python, which runs the helper and the launcher."""
    path = Path("/usr/bin/python3")
    if not path.exists():
        return absent("python3", EVERY)
    answer = words(str(path), "-I", "-S", "-c", "import sys; print('%d.%d.%d' % sys.version_info[:3])")
    return versioned("python", answer, MINIMUM_PYTHON, EVERY, "use a release of this distribution with it")


def probe_git() -> Probe:
    """Git's version."""
    if find_program("git") is None:
        return absent("git", EVERY)
    return versioned("git", words("git", "--version"), MINIMUM_GIT, EVERY, install_command("git"))


def probe_sudo() -> Probe:
    """Sudo is there and set-user-id root."""
    path = find_program("sudo")
    if path is None:
        return absent("sudo", EVERY, f"as root: {install_command('sudo').removeprefix('sudo ')}")
    if not is_setuid_root(path):
        return Probe(
            name="sudo",
            status=ProbeStatus.MISSING,
            observed=f"{path} is not set-user-id root",
            needed_by=EVERY,
            fix=f"as root: chown root:root {path} && chmod 4755 {path}",
        )
    return Probe(name="sudo", status=ProbeStatus.OK, observed=words("sudo", "-V").splitlines()[0][:80])


def probe_helper() -> Probe:
    """The root-owned pieces are installed and are those of this version."""
    try:
        installation = find_installation()
    except BackendUnavailableError:
        return absent("root helper", EVERY, how_to_install())
    if not installation.matches:
        return Probe(
            name="root helper",
            status=ProbeStatus.MISSING,
            observed=f"another version in {installation.directory}: {', '.join(installation.stale)}",
            needed_by=EVERY,
            fix=how_to_install(),
        )
    return Probe(name="root helper", status=ProbeStatus.OK, observed=str(installation.directory))


def probe_permission() -> Probe:
    """Sudo runs the helper for this user without a password: tried, with an empty conversation."""
    name = "helper without password"
    if os.geteuid() == 0:
        return Probe(name=name, status=ProbeStatus.INFO, observed="asked as root; ask again as yourself")
    try:
        helper = find_installation().helper
    except BackendUnavailableError:
        return Probe(
            name=name,
            status=ProbeStatus.MISSING,
            observed="no helper",
            needed_by=EVERY,
            fix=how_to_install(),
        )
    # No session of the terminal: sudo can't ask, whatever it is set to.
    done = process.run(Command(argv=("sudo", "-n", str(helper)), timeout=15))
    answer = done.stderr.decode("utf-8", "replace").strip()
    # Without a socket the helper itself says that it wants one: so sudo let it start.
    if not answer.startswith("clsecure helper:"):
        return Probe(
            name=name,
            status=ProbeStatus.MISSING,
            observed=answer.splitlines()[0][:120] if answer else f"sudo ended with status {done.returncode}",
            needed_by=EVERY,
            fix=how_to_allow(pwd.getpwuid(os.geteuid()).pw_name),
        )
    return Probe(name=name, status=ProbeStatus.OK, observed="allowed")


def probe_firejail() -> Probe:
    """Firejail's version, its set-user-id bit, and nobody's list that would lock worker accounts out."""
    path = find_program("firejail")
    if path is None:
        return absent("firejail", NAMESPACE)
    probe = versioned(
        "firejail",
        words("firejail", "--version"),
        MINIMUM_FIREJAIL,
        NAMESPACE,
        "use a release of this distribution with it, or --mode user",
    )
    problem, fix = None, None
    if not is_setuid_root(path):
        problem, fix = (
            f"{path} is not set-user-id root",
            f"sudo chown root:root {path} && sudo chmod 4755 {path}",
        )
    elif Path("/etc/firejail/firejail.users").exists():
        problem = "/etc/firejail/firejail.users names who may use firejail, worker accounts are not in it"
        fix = "sudo mv /etc/firejail/firejail.users /etc/firejail/firejail.users.off"
    else:
        config = read_small("/etc/firejail/firejail.config") or ""
        switched = re.findall(r"^(seccomp no|network no)\s*$", config, re.MULTILINE)
        if switched:
            problem = f"/etc/firejail/firejail.config says {', '.join(switched)}"
            fix = "take that out of /etc/firejail/firejail.config"
    if problem is None or probe.status is ProbeStatus.MISSING:
        return probe
    return Probe(name="firejail", status=ProbeStatus.MISSING, observed=problem, needed_by=NAMESPACE, fix=fix)


def probe_firejail_isolates() -> Probe:
    """Firejail fails open in containers: run it, and see that the namespaces really are others."""
    name = "firejail isolates"
    if find_program("firejail") is None:
        return absent(name, NAMESPACE, install_command("firejail"))
    looks = ("readlink", "/proc/self/ns/pid", "/proc/self/ns/net")
    argv = ("firejail", "--quiet", "--noprofile", "--net=none", "--", *looks)
    home = Path("~").expanduser()
    done = process.run(
        Command(argv=argv, env={"PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8", "HOME": str(home)}, timeout=15)
    )
    inside = done.stdout.decode("ascii", "replace").split()
    own = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("pid", "net")]
    if len(inside) == len(own) and not set(inside) & set(own):
        return Probe(name=name, status=ProbeStatus.OK, observed="own PID and network namespaces, seen inside")
    return Probe(
        name=name,
        status=ProbeStatus.MISSING,
        observed="firejail ran the command without its own namespaces"
        if inside
        else "firejail could not run a command",
        needed_by=NAMESPACE,
        fix="use a machine or VM of its own rather than a container; or --mode user",
    )


def _optional(tool: str, purpose: str) -> Probe:
    path = find_program(tool, f"{SYSTEM_PATH}:{os.environ.get('PATH', '')}")
    if path is None:
        return Probe(
            name=tool,
            status=ProbeStatus.INFO,
            observed=f"not installed; {purpose}",
            fix=install_command(tool),
        )
    return Probe(name=tool, status=ProbeStatus.OK, observed=str(path))


def probe_git_lfs() -> Probe:
    """Git LFS."""
    return _optional("git-lfs", "needed for repositories that use LFS")


def probe_npm() -> Probe:
    """The tool that fetches agents."""
    return _optional("npm", "clsecure agent install needs it")


def probe_connector() -> Probe:
    """What connects a full network, and the setting that keeps it from doing so."""
    found, name = find_connector(), "full network"
    if found is None:
        observed = f"neither {' nor '.join(CONNECTORS)} is installed; --allow-network needs one"
        return Probe(name=name, status=ProbeStatus.INFO, observed=observed, fix=install_command("pasta"))
    closed = user_namespaces_closed()
    # Distributions that restrict them have given pasta, and not unshare, a profile that permits it.
    if closed is not None and (found != "pasta" or not closed[0].startswith("kernel.apparmor")):
        return Probe(
            name=name,
            status=ProbeStatus.WARNING,
            observed=f"by {found}; plain users can't make user namespaces ({closed[0]})",
            fix=f"sudo sysctl {closed[0]}={closed[1]}",
        )
    if not os.access(TUN, os.R_OK | os.W_OK):
        return Probe(
            name=name,
            status=ProbeStatus.WARNING,
            observed=f"by {found}; plain users can't open {TUN}",
            fix=f"sudo modprobe tun && sudo chmod 666 {TUN}",
        )
    return Probe(name=name, status=ProbeStatus.OK, observed=f"by {found}")


def probe_nft() -> Probe:
    """What closes a full network towards this machine."""
    return _optional("nft", "--allow-network needs it")


def probe_gh() -> Probe:
    """GitHub's command line."""
    return _optional("gh", "pull requests are opened with it, by you")
