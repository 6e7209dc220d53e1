"""What the documentation says is what the program knows."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from clsecure.cli.parsing.flags import OPTIONS
from clsecure.cli.parsing.grammar import build_parser
from clsecure.cli.verbs import COMMANDS, VERB_FLAGS, Verb
from clsecure.errors import EXIT_FAILURE, EXIT_TIME_LIMIT, EXIT_VERIFICATION
from clsecure.settings import files
from clsecure.settings.model import load
from clsecure.settings.sources import KEYS, gather
from clsecure.settings.tables import EGRESS
from clsecure.settings.values.amounts import BUDGET_PARTS
from tests.support.person import CHECKOUT

_DOCUMENTS = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/*.md")])
_FLAG = re.compile(r"(?<![\w-])--?[a-z][a-z-]*")
_LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)")


def flags_of_help(verb: Verb) -> set[str]:
    return set(_FLAG.findall(build_parser(verb).format_help()))


def words(name: str) -> set[str]:
    return set(_FLAG.findall((CHECKOUT / name).read_text()))


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_the_readme_names_every_flag_of_the_help() -> None:
    assert flags_of_help(Verb.RUN) - {"--cleanup-all", "-l"} <= words("README.md")


@pytest.mark.parametrize("verb", COMMANDS)
def test_the_usage_names_every_flag_of_each_command(verb: Verb) -> None:
    assert flags_of_help(verb) <= words("docs/usage.md")


def test_the_usage_shows_no_flag_of_ours_that_does_not_exist() -> None:
    known = {flag for option in OPTIONS for flag in option.flags} | {"--help", "-h", "--version", *VERB_FLAGS}
    text = (CHECKOUT / "docs" / "usage.md").read_text()
    shown = set(re.findall(r"`(--?[a-z][a-z-]*)(?= [A-Z[]|`)", text))
    assert shown <= known


def test_the_settings_name_every_key() -> None:
    text = (CHECKOUT / "docs" / "settings.md").read_text()
    assert [key for key in KEYS if f"`{key}`" not in text] == []


@pytest.mark.parametrize("name", ["settings.md", "network.md", "setup.md"])
def test_the_examples_of_config_toml_are_accepted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "SYSTEM_OWNER", os.geteuid())
    examples = re.findall(
        r"^```toml\n(.*?)^```", (CHECKOUT / "docs" / name).read_text(), re.MULTILINE | re.DOTALL
    )
    assert examples
    for number, example in enumerate(examples):
        home, machine = tmp_path / str(number), tmp_path / f"machine-{number}"
        file = (machine if "[enforce]" in example else home / ".config/clsecure") / "config.toml"
        file.parent.mkdir(parents=True, mode=0o755)
        file.write_text(example)
        file.chmod(0o644)
        settings = load(gather(environ={"HOME": str(home)}, system=machine))
        assert settings.allow_domains
        assert settings.warnings == ()


def test_every_key_of_the_table_is_in_the_settings() -> None:
    text = (CHECKOUT / "docs" / "settings.md").read_text()
    table = text.partition("[egress]\n")[2].partition("```")[0]
    assert [key for key in EGRESS if not re.search(rf"^(\[egress\.)?{key}\b", table, re.MULTILINE)] == []
    assert [part for part in BUDGET_PARTS if not re.search(rf"^{part} = ", table, re.MULTILINE)] == []


def test_the_exit_statuses_are_those_of_the_program() -> None:
    text = (CHECKOUT / "README.md").read_text()
    rows = re.findall(r"^\| ([0-9, ]+) \|", text, re.MULTILINE)
    named = {int(status) for row in rows for status in row.split(",")}
    assert {EXIT_FAILURE, EXIT_TIME_LIMIT, EXIT_VERIFICATION, 130} <= named


@pytest.mark.parametrize("document", _DOCUMENTS, ids=lambda path: path.name)
def test_every_link_leads_somewhere(document) -> None:
    text = document.read_text()
    for path, anchor in _LINK.findall(text):
        target = document.parent / path if path else document
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target.read_text()), anchor
