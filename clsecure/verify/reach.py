"""What can be reached from inside: files and the network. Pure judgements of what was tried."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from clsecure.model import IsolationMode, Mount, NetworkPolicy, SandboxSpec
from clsecure.verify.bait import METADATA, PRIVATE
from clsecure.verify.checks import Observation
from clsecure.verify.network import FALLBACK
from clsecure.verify.services import reached as is_reached
from clsecure.verify.tried import Tried
from clsecure.verify.words import NOT_TOLD, all_refused, errors, names, told, untried

_BY_FILTER = frozenset({"EHOSTUNREACH", "ENETUNREACH", "EACCES", "EPERM", "EADDRNOTAVAIL", "EAFNOSUPPORT"})
# What AppArmor and SELinux call a process that they leave alone; "" where there is neither.
_UNCONFINED = re.compile(r"^$|^unconfined$|\(unconfined\)$|:unconfined_t:")
_REOPENED = ("read", "written")
_SYSTEM = ("/", "/usr", "/etc")
_SCOPED_SINCE = 6
"""The version of Landlock from which on signals are its business."""
_LOCAL6 = frozenset({"0" * 31 + "1"})


def mounted(path: PurePosixPath, spec: SandboxSpec) -> Mount | None:
    """Return the mount by which the user has shown a path, or something below it."""
    given = (m for m in spec.mounts if path.is_relative_to(m.source) or m.source.is_relative_to(path))
    return next(given, None)


def canary(*labels: str) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge files of the user's: there outside, not inside."""

    def observe(tried: Tried, spec: SandboxSpec) -> Observation:
        expected = "it can't be read inside"
        outside = told(tried.outside.files, labels)
        there = [label for label in labels if outside[label] is None]
        if not there:
            said = {tried.files.get(label, label): error for label, error in outside.items()}
            return untried(expected, f"outside it can't be read either ({errors(said)})")
        inside = {tried.files[label]: error for label, error in told(tried.inside.files, there).items()}
        shown = {path: error for path, error in inside.items() if error is None}
        given = [mount for path in shown if (mount := mounted(PurePosixPath(path), spec))]
        if shown and len(given) == len(shown):
            return Observation(expected=expected, observed=f"you have mounted {given[0].source}", holds=None)
        observed = f"inside {errors(inside)}; outside it can be read"
        return Observation(expected=expected, observed=observed, holds=all_refused(inside))

    return observe


def landlock(tried: Tried, spec: SandboxSpec) -> Observation:
    """Judge by what nothing else refuses, for the kernel tells nobody which processes Landlock confines.

    That is a file of the host's that neither modes, mounts nor names keep anybody from, for the probe has a
    descriptor of it: to open it once more is refused, since no rule leads there. And from ABI 6 on it is a
    signal to the first process, where that is the same account's and waits outside of what is confined.
    """
    expected = "the host's file can't be opened by its descriptor, the first process can't be signalled"
    said, here = tried.landlock, tried.inside.landlock
    if said != here:
        observed = f"ABI {said} is said to be applied, ABI {here} can be had inside"
        return Observation(expected=expected, observed=observed, holds=False)
    if not here:
        return untried(expected, "Landlock can't be had inside")
    inside, outside = (told(each.reopened, _REOPENED) for each in (tried.inside, tried.outside))
    # In a container the launcher is the first itself.
    scoped = here >= _SCOPED_SINCE and spec.mode is not IsolationMode.CONTAINER
    signalled = tried.inside.signalled if scoped else {}
    observed = f"ABI {here}; {errors({**inside, **signalled})}"
    if None in (*inside.values(), *signalled.values()):
        given = mounted(PurePosixPath(tried.words), spec)
        if given is not None and not given.read_only and None not in signalled.values():
            return untried(expected, f"you have mounted {given.source}")
        return Observation(expected=expected, observed=observed, holds=False)
    if set(outside.values()) != {None}:
        return untried(expected, f"outside it can't be opened either ({errors(outside)})")
    if set(inside.values()) != {"EACCES"}:
        return untried(expected, f"something else is in the way ({errors(inside)})")
    if not _UNCONFINED.search(tried.inside.confined):
        return untried(expected, f"{tried.inside.confined!r} may be what refuses it")
    return Observation(expected=expected, observed=f"{observed}; outside it can be opened", holds=True)


def root_files(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Judge what no account but root may read, in whatever view: not even the user can, outside."""
    expected = "neither root's home nor the passwords can be read"
    refused = told(tried.inside.files, ("root's home", "passwords"))
    if all_refused(refused) and tried.outside.files.get("state", NOT_TOLD) is not None:
        return untried(expected, "outside, the probe can't read a file of your own")
    return Observation(expected=expected, observed=errors(refused), holds=all_refused(refused))


def other_homes(tried: Tried, spec: SandboxSpec) -> Observation:
    """Compare the names in /home with the one that the session has."""
    own = spec.account.home.name
    expected = f"/home holds {own} only, and what you mount"
    given = {
        m.target.parts[2] for m in spec.mounts if m.target.parts[1:2] == ("home",) and m.target.parts[2:]
    }
    others = set(tried.inside.home) - {own} - given
    further = set(tried.outside.home) - {own} - given
    if not others and not further:
        return untried(expected, "outside, /home holds no other either")
    observed = f"/home holds {names(tried.inside.home)}; outside {len(further)} others"
    # Where not even that one is seen, none could be; it need not be there (home_base).
    sees = own in tried.inside.home or str(spec.account.home.parent) != "/home"
    return Observation(expected=expected, observed=observed, holds=not others and sees)


def system(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Judge whether a file can be made among the system's; that the probe can make one is shown outside."""
    expected = "no file can be made in /, /usr, /etc"
    inside = told(tried.inside.written, _SYSTEM)
    if all_refused(inside) and tried.outside.own is not None:
        return untried(expected, f"outside, the probe can't make a file of your own ({tried.outside.own})")
    observed = f"making a file: {errors(inside)}"
    return Observation(expected=expected, observed=observed, holds=all_refused(inside))


def unheard(*labels: str) -> Callable[[Tried, SandboxSpec], Observation]:
    """Judge by what the host's own listeners heard; what was never heard outside shows nothing."""

    def observe(tried: Tried, _spec: SandboxSpec) -> Observation:
        expected = "the host's listeners hear nobody"
        if heard := [label for label in labels if label in tried.heard_inside]:
            return Observation(expected=expected, observed=f"heard from inside: {names(heard)}", holds=False)
        could = [label for label in labels if label in tried.heard_outside]
        if not could:
            return untried(expected, f"there is none ({names(labels)})")
        inside = told(tried.inside.connected, could)
        shown = {label: error or "answered by another" for label, error in inside.items()}
        observed = f"not heard by the host: {errors(shown)}; each of them hears you"
        return Observation(expected=expected, observed=observed, holds=NOT_TOLD not in inside.values())

    return observe


def own_addresses(tried: Tried, spec: SandboxSpec) -> Observation:
    """Judge the same of this machine's own addresses, of which each has its listeners."""
    return unheard(*tried.addresses)(tried, spec)


def services(tried: Tried, spec: SandboxSpec) -> Observation:
    """Judge sockets that services of this machine listen on, and that the user can use."""
    expected = "no socket of a service of this machine's can be connected to"
    given = [label for label, path in tried.services.items() if mounted(PurePosixPath(path), spec)]
    inside = told(tried.inside.connected, (label for label in tried.services if label not in given))
    could = [label for label, error in told(tried.outside.connected, inside).items() if error is None]
    if came := [label for label, error in inside.items() if is_reached(error)]:
        return Observation(expected=expected, observed=f"connected inside: {names(came)}", holds=False)
    if not could and given:
        return Observation(expected=expected, observed=f"you have mounted {names(given)}", holds=None)
    if not could:
        return untried(expected, f"outside you can use none of {names(tried.services)}")
    there = told(inside, could)
    tells = f"{errors(there)}; outside you can use each of them"
    return Observation(expected=expected, observed=tells, holds=all_refused(there))


def no_route(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Judge where a packet could go, and through what; either shows something only where there is another."""
    expected = "no way out, and no interface but lo"
    inside, outside = tried.inside, tried.outside
    observed = (
        f"IPv4: {inside.routes.get('IPv4') or 'there is a way'}; interfaces: {names(inside.interfaces)}"
    )
    if inside.routes.get("IPv4") is None or not set(inside.interfaces) - FALLBACK <= {"lo"}:
        return Observation(expected=expected, observed=observed, holds=False)
    if outside.routes.get("IPv4", NOT_TOLD) is not None:
        return untried(expected, "this machine has no way out itself")
    if set(outside.interfaces) <= {"lo"}:
        return untried(expected, "this machine has no interface but lo either")
    return Observation(
        expected=expected, observed=f"{observed}; outside {names(outside.interfaces)}", holds=True
    )


def ipv6(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Judge the other way out, which rules for IPv4 forget: by addresses, and by where packets may go."""
    expected = "no IPv6 but that of loopback"
    further, outside = (set(each.addresses6) - _LOCAL6 for each in (tried.inside, tried.outside))
    way = tried.inside.routes.get("IPv6")
    observed = f"addresses: {names(further)}; way out: {way or 'there is one'}"
    if further or way is None:
        return Observation(expected=expected, observed=observed, holds=False)
    if not outside:
        return untried(expected, "this machine has no IPv6 but that of loopback either")
    if tried.outside.routes.get("IPv6", NOT_TOLD) is not None:
        return untried(expected, f"this machine has no way out by IPv6 itself; inside, {observed}")
    return Observation(
        expected=expected, observed=f"{observed}; outside {len(outside)} addresses, and a way", holds=True
    )


def metadata(tried: Tried, spec: SandboxSpec) -> Observation:
    """Without a full network there is no way there; with one, the packet filter answers at once.

    Nothing of ours can listen there, and nothing is sent there from outside: that there is a way, by the
    machine's routes, is all that is known of it.
    """
    full = spec.network is NetworkPolicy.FULL
    labels = METADATA if full and spec.allow_private else (*METADATA, *PRIVATE)
    # A proxy of the machine's own makes no way: what counts is where packets may go.
    inside = told(tried.inside.sent if full else tried.inside.routes, labels)
    expected = "the packet filter refuses them at once" if full else "there is no way to them"
    if not (all(error in _BY_FILTER for error in inside.values()) if full else all_refused(inside)):
        return Observation(expected=expected, observed=errors(inside), holds=False)
    could = [label for label, error in told(tried.outside.routes, labels).items() if error is None]
    if not could:
        return untried(expected, "outside there is no way to them either")
    observed = f"{errors(told(inside, could))}; outside there is a way to each, where nothing is sent"
    return Observation(expected=expected, observed=observed, holds=True)


def resolvers(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Names are a way out, too."""
    expected = "none answers"
    observed = f"inside: {names(tried.inside.resolvers)}; outside: {names(tried.outside.resolvers)}"
    if not tried.inside.resolvers and not tried.outside.resolvers:
        return untried(expected, "outside none answers either")
    return Observation(expected=expected, observed=observed, holds=not tried.inside.resolvers)


def ports(tried: Tried, _spec: SandboxSpec) -> Observation:
    """Whatever else listens inside is nobody's that we know of."""
    wanted = {tried.port} if tried.port else set()
    expected = f"listening inside: {names(map(str, wanted))}"
    if set(tried.inside.listening) == wanted and not tried.outside.listening:
        return untried(expected, "outside, no listener is seen")
    observed = f"listening inside: {names(map(str, sorted(tried.inside.listening)))}"
    return Observation(expected=expected, observed=observed, holds=set(tried.inside.listening) == wanted)
