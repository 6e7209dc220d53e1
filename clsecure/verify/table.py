"""Every check there is, in one table: what ``clsecure verify --list-checks`` shows."""

from __future__ import annotations

from typing import Any

from clsecure.verify.changes import TWICE_CHECKS
from clsecure.verify.checks import Check
from clsecure.verify.engines import ENGINE_CHECKS
from clsecure.verify.fresh import FRESH_CHECKS
from clsecure.verify.host import BARRIER_CHECKS
from clsecure.verify.inside import INSIDE_CHECKS
from clsecure.verify.leftovers import MACHINE_CHECKS
from clsecure.verify.running import RUNNING_CHECKS
from clsecure.verify.userside import USER_CHECKS

ALL_CHECKS: tuple[Check[Any], ...] = (
    *BARRIER_CHECKS,
    *INSIDE_CHECKS,
    *RUNNING_CHECKS,
    *FRESH_CHECKS,
    *TWICE_CHECKS,
    *MACHINE_CHECKS,
    *ENGINE_CHECKS,
    *USER_CHECKS,
)
"""In the order in which they look."""
