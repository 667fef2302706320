"""The pages under docs/ whose examples are meant to be typed are run as they stand."""

import doctest
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("page", ["plugins.md", "training.md"])
def test_the_examples_of_a_page_run(page, clean_registries):
    failed, tried = doctest.testfile(str(DOCS / page), module_relative=False, optionflags=OPTIONS)
    assert tried > 0
    assert failed == 0
