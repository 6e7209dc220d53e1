"""Errors that people see: what happened, why, and what to do next.

Only ``clsecure.cli`` prints them or exits. Every class owns the exit status of the command line.
"""

from __future__ import annotations

from typing import Any, ClassVar

EXIT_INTERRUPTED = 130
EXIT_FAILURE = 125
EXIT_TIME_LIMIT = 124
EXIT_VERIFICATION = 123


class ClsecureError(Exception):
    """A failure that was foreseen.

    :param brief: what happened, one sentence without a full stop.
    :param details: why, or the output of a failed tool; may hold hostile text, escaped when printed.
    :param resolution: the command or change that helps.
    """

    exit_code: ClassVar[int] = EXIT_FAILURE

    def __init__(self, brief: str, *, details: str | None = None, resolution: str | None = None) -> None:
        super().__init__(brief)
        self.brief = brief
        self.details = details
        self.resolution = resolution


class UsageError(ClsecureError):
    """The command line, a setting or a name is not acceptable."""


class NotStartedError(UsageError):
    """The command can't be executed inside: nothing of it ever ran."""


class RepositoryError(ClsecureError):
    """The user's repository can't be used as it is."""


class BackendUnavailableError(ClsecureError):
    """The machine lacks what the chosen mode needs."""


class ImageLostError(BackendUnavailableError):
    """The engine does not have the image that a container is to be made from."""


class HelperError(ClsecureError):
    """The root helper refused or failed."""


class SessionBusyError(ClsecureError):
    """The session is running already."""


class SessionNotFoundError(ClsecureError):
    """No such session."""


class AgentError(ClsecureError):
    """The agent can't be found or made available."""


class ImageError(ClsecureError):
    """A worker image can't be locked, built, loaded or found."""


class EgressError(ClsecureError):
    """The gateway failed or a policy is malformed."""


class ImportRejectedError(ClsecureError):
    """The agent's work can't be brought home as it is; it is kept."""


class StateError(ClsecureError):
    """The session store is damaged or can't be written."""


class ToolError(ClsecureError):
    """A program that clsecure ran failed."""


class VerificationError(ClsecureError):
    """The isolation does not hold what the plan promised.

    :param checks: what failed, as :class:`clsecure.model.CheckResult`, for the record of the session.
    """

    exit_code = EXIT_VERIFICATION

    def __init__(
        self,
        brief: str,
        *,
        details: str | None = None,
        resolution: str | None = None,
        checks: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(brief, details=details, resolution=resolution)
        self.checks = checks
