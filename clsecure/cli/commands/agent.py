"""``clsecure agent install NAME``: fetch an agent for machines that have none."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.options import AgentOptions, Invocation
from clsecure.errors import UsageError
from clsecure.settings.values.output import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Install the agent for this user, and say where."""
    from clsecure.agents.find import agents_directory
    from clsecure.agents.install import install_claude

    options = invocation.options
    assert isinstance(options, AgentOptions)  # noqa: S101  # the parser pairs verb and options
    if options.name != "claude":
        raise UsageError(
            f"{options.name} comes with clsecure, there is nothing to install",
            resolution=f"clsecure --agent {options.name}",
        )
    home = Path("~").expanduser()
    with ui.phase("fetching Claude Code from npm"):
        path = install_claude(
            agents_directory(os.environ, home) / "claude",
            environ=os.environ,
            home=home,
            exclude=directories_to_avoid(home),
        )
    if invocation.output is OutputFormat.JSON:
        render.write_json({"agent": options.name, "path": str(path)})
    else:
        sys.stdout.write(f"{escape(str(path))}\n")
    return 0


def directories_to_avoid(home: Path) -> tuple[Path, ...]:
    """Return where no program is taken from: the directory of the call, maybe somebody's repository."""
    here = Path.cwd()
    return () if home.is_relative_to(here) else (here,)
