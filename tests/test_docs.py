"""The pages under docs/ whose examples are meant to be typed are run as they stand."""

import doctest
from pathlib import Path

import pytest

from mlpkit import activations, losses, user_penalties

DOCS = Path(__file__).parent.parent / "docs"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.fixture
def clean_registries():
    """Forget afterwards what a page has registered."""
    registries = [activations.record.REGISTRY, losses.record.REGISTRY, user_penalties.REGISTRY]
    kept = [dict(registry) for registry in registries]
    yield
    for registry, before in zip(registries, kept, strict=True):
        registry.clear()
        registry.update(before)


@pytest.mark.parametrize("page", ["plugins.md"])
def test_the_examples_of_a_page_run(page, clean_registries):
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=OPTIONS)
    assert tried > 0
    assert failed == 0
