"""The schema of config.toml says what the readers take."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import jsonschema
import pytest

from clsecure.settings import schema
from clsecure.settings.keys import KEYS, STRUCTURED
from clsecure.settings.structured import ROLES
from clsecure.settings.structured_tables import AGENT_KEYS, PROVIDER_KEYS
from clsecure.settings.tables import EGRESS, ENFORCE, LIMITS, SETUP, TABLES
from tests.support.person import CHECKOUT
from tests.unit.test_settings_system import CEILINGS
from tests.unit.test_settings_toml import VALUES

DOCUMENT: dict[str, Any] = json.loads((CHECKOUT / "docs/config.schema.json").read_text())
_ALIASES = {"isolation-mode", "allow_network", "install_deps"}


def check(content: str) -> None:
    jsonschema.validate(tomllib.loads(content), DOCUMENT, cls=jsonschema.Draft202012Validator)


def test_the_committed_one_is_up_to_date() -> None:
    assert schema.document() == DOCUMENT, "./dev invoke schema"


def test_it_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(DOCUMENT)


def test_it_has_exactly_the_keys_of_the_model_and_the_tables() -> None:
    assert set(DOCUMENT["properties"]) == {*KEYS, *TABLES, *STRUCTURED, "enforce"}
    for name, table in {
        "Egress": EGRESS, "TimedLimits": LIMITS, "Setup": SETUP, "Enforce": ENFORCE,
        "Provider": PROVIDER_KEYS, "Models": ROLES, "Agent": AGENT_KEYS,
    }.items():  # fmt: skip
        assert set(DOCUMENT["$defs"][name]["properties"]) == set(table)


@pytest.mark.parametrize(("content", "key"), [(content, key) for content, key, _ in VALUES])
def test_it_accepts_what_the_readers_accept(content: str, key: str) -> None:
    if not any(alias in content for alias in _ALIASES):  # the old spellings are for old files
        check(content)


@pytest.mark.parametrize("ceiling", sorted({ceiling for ceiling, *_ in CEILINGS}))
def test_it_accepts_every_ceiling(ceiling: str) -> None:
    check(f"[enforce]\n{ceiling}\n")


@pytest.mark.parametrize(
    "content",
    ["moed = 'user'", "mode = 'docker'", "engine = 'lxc'", "docker = 'host'", "docker = 1", "image = 'A'",
     "docker_images = 5", "[enforce]\nmode = 'auto'", "[enforce]\ndocker = 'host'",
     "full_clone = 'true'", "[egress]\nalow = []",
     "[egress]\nallow = [5]",
     "[limits]\nmemory = 0", "[limits]\nmemory = '4 gigs'", "[limits]\nswap = 1",
     "cleanup_hook_timeout = 301", "presets = ['hunter2']", "notify = ['mail']",
     "[enforce]\nmoed = 'user'", "[enforce]\nmounts = 5",
     "providers = 'mine'", "[providers.Mine]\nbase_url = 'https://a'", "[providers.mine]\nkey_env = 'A'",
     "[providers.mine]\nbase_url = 'https://a'\nkey = 'hunter2'", "[agents.own]\ncommand = 'own'",
     "session = '../x'", "[setup]\nscript = 5", "output = 'xml'"],
)  # fmt: skip
def test_it_refuses_what_the_readers_refuse(content: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        check(content)


@pytest.mark.parametrize("name", sorted(path.name for path in CHECKOUT.glob("docs/*.md")))
def test_every_example_in_the_documentation_is_valid(name: str) -> None:
    text = (CHECKOUT / "docs" / name).read_text()
    for example in re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        check(example)
