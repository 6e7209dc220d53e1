"""``mode = auto``: the strongest mode that works here, told from facts that cost little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from clsecure.errors import BackendUnavailableError, ClsecureError
from clsecure.machine import containers, programs
from clsecure.machine.probe import Probe, ProbeStatus, has_user_namespaces
from clsecure.model import Engine, IsolationMode


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A mode, and why it is no stronger one.

    :param passed_over: each stronger mode with what it lacks, strongest first.
    """

    mode: IsolationMode
    passed_over: tuple[tuple[IsolationMode, str], ...] = ()

    def __str__(self) -> str:
        """Say it in one line."""
        why = "; ".join(f"{mode} lacks {what}" for mode, what in self.passed_over)
        return f"mode auto: {self.mode}{f' ({why})' if why else ''}"


def strongest(at_least: IsolationMode, *, engine: Engine, image: str, image_is_there: bool) -> Choice:
    """Choose.

    What is told here may still turn out otherwise at the barrier, which refuses then; it never goes on in a
    weaker mode.

    :param at_least: no weaker one.
    :param image: the worker image that container mode would take.
    :raises BackendUnavailableError: none that is strong enough works here.
    """
    lacks: dict[IsolationMode, Callable[[], str | None]] = {
        IsolationMode.CONTAINER: lambda: _container(engine, None if image_is_there else image),
        IsolationMode.NAMESPACE: _namespace,
        IsolationMode.USER: lambda: None,
    }
    passed_over: list[tuple[IsolationMode, str]] = []
    for mode, lack in lacks.items():
        what = lack()
        if what is None:
            return Choice(mode=mode, passed_over=tuple(passed_over))
        passed_over.append((mode, what))
        if mode is at_least:
            break
    raise BackendUnavailableError(
        f"no mode that is strong enough works here (at least {at_least})",
        details="\n".join(f"{mode} lacks {what}" for mode, what in passed_over),
        resolution="clsecure doctor names the commands that help",
    )


def _container(engine: Engine, missing_image: str | None) -> str | None:
    if not has_user_namespaces():
        return "user namespaces"
    lacks = ", ".join(containers.unusable(engine))
    if lacks:
        return lacks
    # Not built here and now: that takes minutes, and auto is not the place to ask.
    return None if missing_image is None else f"the image {missing_image}"


def _namespace() -> str | None:
    for look in (programs.probe_firejail, programs.probe_firejail_isolates):
        try:
            probe: Probe = look()
        except (OSError, ClsecureError) as error:
            return f"a firejail that can be looked at ({error})"
        if probe.status is ProbeStatus.MISSING:
            return (
                f"a firejail that isolates: {probe.observed}"
                if probe.observed != "not installed"
                else "firejail"
            )
    return None
