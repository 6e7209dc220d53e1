"""What the phases of a session share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.agents.spec import AgentSpec
from clsecure.installation import Installation
from clsecure.privileged.client import HelperConnection
from clsecure.session.clock import Clock
from clsecure.session.plan import SessionPlan
from clsecure.session.store import SessionDirectory, Store
from clsecure.session.ui import Ui
from clsecure.workspace.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What of the user's world a session is made from.

    :param environ: the user's environment.
    :param home: the user's home.
    :param terminal: the agent can be given a terminal of its own: descriptors 0 and 1 are terminals.
    """

    environ: Mapping[str, str]
    home: Path
    terminal: bool
    installation: Installation
    store: Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One session: its plan, what it is made from, and what it has found out so far."""

    plan: SessionPlan
    repository: Repository
    ui: Ui
    around: Surroundings
    connection: HelperConnection
    agent: AgentSpec
    place: SessionDirectory
    clock: Clock = field(default_factory=Clock)
    warnings: list[str] = field(default_factory=list)

    def warn(self, warning: str) -> None:
        """Say it now, and in the result."""
        self.warnings.append(warning)
        self.ui.warn(warning)

    @property
    def runs_agent(self) -> bool:
        """The agent itself runs, no shell and no command of the user's."""
        return self.plan.command is None and not self.plan.shell
