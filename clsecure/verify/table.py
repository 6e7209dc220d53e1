"""Every check there is, in one table: what ``clsecure verify --list-checks`` shows."""

from __future__ import annotations

from typing import Any

from clsecure.verify.checks import Check
from clsecure.verify.host import BARRIER_CHECKS
from clsecure.verify.leftovers import MACHINE_CHECKS

ALL_CHECKS: tuple[Check[Any], ...] = (*BARRIER_CHECKS, *MACHINE_CHECKS)
"""In the order in which they look."""
