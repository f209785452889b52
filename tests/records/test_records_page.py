"""The page about records names all that can be in them."""

import re
from pathlib import Path

import pytest
import torch
from reference import mlp

from stepguard.guard import CollapseSettings, Settings, about
from stepguard.records import CollapseReading, Culprit, Reading

PAGE = (Path(__file__).parents[2] / "docs" / "records.md").read_text()
PARTS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))


def fields_of(settings):
    model = mlp()
    return set(about(model, torch.optim.SGD(model.parameters(), lr=0.1), settings))


KINDS = {
    "reading": set(Reading._fields) - {"step"},
    "event": set(Culprit._fields),
    "collapse": set(CollapseReading._fields) - {"step"},
    "start": fields_of(Settings()) | fields_of(CollapseSettings()) | {"schema", "pid"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_is_explained(kind):
    table = PARTS[kind].split("|---|---|\n")[1]
    assert {name for name in KINDS[kind] if f"`{name}`" not in table} == set()
