"""The examples of docs/interop.md run as they stand, in a folder of their own."""

import doctest
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "interop.md"


def test_the_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, optionflags=options)
    assert tried > 30
    assert failed == 0
