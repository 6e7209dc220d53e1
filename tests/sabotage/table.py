"""Every check, and how it is made to fail: the one table of all sabotage.

A row breaks one thing, in one sandbox, for one command. What else it cannot but break is said beside it; a
check that fails without being named is a failure of the test, as is one that does not notice.
"""

from __future__ import annotations

from tests.sabotage.barrier import BARRIER
from tests.sabotage.inside import INSIDE
from tests.sabotage.leftovers import LEFT
from tests.sabotage.running import RUNNING
from tests.support.sabotage import Sabotage

SABOTAGE: tuple[Sabotage, ...] = (*BARRIER, *INSIDE, *RUNNING, *LEFT)
