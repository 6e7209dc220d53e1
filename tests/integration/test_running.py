"""Real sandboxes of every kind while a command runs: no alarm where nothing is wrong, one where it is."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.support.driven import MODES, Driver, driven, image_for
from tests.support.person import Person

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

DRIVER = """
from clsecure.verify.running import check_running
with opened(*sys.argv[1:]) as (sandbox, spec):
    seen = []
    sandbox.looked = seen.append
    # Forks all the time, and leaves orphans and dead children behind.
    script = "while :; do (sleep 0.01 &) ; sleep 0.005 & done"
    command = SandboxCommand(argv=("/bin/sh", "-c", script), env={"PATH": "/usr/bin:/bin"}, cwd=Path("/"))
    sandbox.start(command, stdio=(0, 2, 2))
    tell(spec.account.uid)
    while told():
        # One that was cut short is of a busy machine, and says nothing of what it did not come to.
        while not seen or (facts := seen.pop()).cut:
            assert sandbox.wait(timeout=1) is None, sandbox.end
        results = check_running(facts, spec)
        assert facts.processes == sum(kind.count for kind in facts.kinds)
        tell([sorted({kind.place.value for kind in facts.kinds}), facts.processes,
              {r.check_id: r.observed for r in results if r.status.value != "pass"}])
"""
PLACES = {
    "user": {"inside"},
    "namespace": {"inside", "held"},
    "podman": {"inside", "engine"},
    "docker": {"inside", "held"},
}


def look(driver: Driver) -> list[Any]:
    """Return what is seen next: in which places something runs, how much, and what does not hold."""
    driver.tell("look")
    return list(driver.said())


@pytest.mark.parametrize("mode", MODES)
def test_a_busy_sandbox_raises_no_alarm(request: pytest.FixtureRequest, person: Person, mode: str) -> None:
    image, environ = image_for(request, mode)
    with driven(person, DRIVER, mode, image, environ) as driver:
        driver.said()
        places, processes, wrong = look(driver)
    assert wrong == {}
    assert set(places) == PLACES[mode]
    assert processes > 2


def test_a_process_beside_the_sandbox_is_seen_at_its_second_look(person: Person) -> None:
    with driven(person, DRIVER, "user", "", {}) as driver:
        uid = str(driver.said())
        argv = ["setpriv", "--reuid", uid, "--regid", uid, "--clear-groups", "sleep", "600"]
        with subprocess.Popen(argv) as beside:
            try:
                # A look may have been taken already when it was begun.
                first = next(seen for _ in range(3) if "moving" in (seen := look(driver))[0] or seen[2])
                second = look(driver)
            finally:
                beside.kill()
        assert first[2] == {}
        assert list(second[2]) == ["running-outside"]
        assert f"pid {beside.pid}, /usr/bin/sleep" in second[2]["running-outside"]
