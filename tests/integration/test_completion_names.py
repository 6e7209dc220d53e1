"""What the shells' completions are told of real sessions."""

from __future__ import annotations

import pytest

from tests.support.person import Person

pytestmark = pytest.mark.root


def test_kept_sessions_and_projects_are_offered_and_names_where_they_count(person: Person) -> None:
    repository, odd = person.repository("completed"), person.repository("odd $(touch mark)")
    for place in (repository, odd):
        options = ("--session", "auth.2", "--agent", "demo", "--no-network", "--on-finish", "keep")
        person.clsecure(*options, "--", "sh", "-c", "echo >new", cwd=place).check()
    offered = person.clsecure("completion", "sessions").check().text.splitlines()
    listed = person.clsecure("list", "--output", "json").check().json()["sessions"]
    ours = {each["session_id"] for each in listed if each["project"] in (str(repository), str(odd))}
    assert len(ours) == 2
    assert ours | {"completed"} <= set(offered)
    assert not [word for word in offered if "$" in word or " " in word]
    assert person.clsecure("completion", "names", cwd=repository / "src").text == "auth.2\n"
    assert person.clsecure("completion", "names", cwd=person.home).text == ""
    person.clsecure("cleanup", *ours, "--yes").check()
