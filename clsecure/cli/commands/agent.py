"""``clsecure agent install NAME``: fetch an agent for machines that have none."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from clsecure.cli import render
from clsecure.cli.options import AgentOptions, Invocation
from clsecure.settings.values import OutputFormat
from clsecure.terminal import escape

if TYPE_CHECKING:
    from clsecure.session.ui import Ui


def execute(invocation: Invocation, ui: Ui) -> int:
    """Install the agent for this user, and say where."""
    from clsecure.agents.install import install_agent

    options = invocation.options
    assert isinstance(options, AgentOptions)  # noqa: S101  # the parser pairs verb and options
    with ui.phase(f"fetching {options.name}"):
        path = install_agent(options.name)
    if invocation.output is OutputFormat.JSON:
        render.write_json({"agent": options.name, "path": str(path)})
    else:
        sys.stdout.write(f"{escape(str(path))}\n")
    return 0
