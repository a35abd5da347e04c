"""The examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import pkgutil

import pytest

import truthgate_eval

MODULES = [
    module.name
    for module in pkgutil.walk_packages(truthgate_eval.__path__, "truthgate_eval.")
    if not module.name.endswith("__main__")
    # Cannot be imported where vLLM is not installed.
    and (not module.name.endswith(".vllm_model") or importlib.util.find_spec("vllm") is not None)
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_give_what_they_say(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_there_are_examples_to_run() -> None:
    finder = doctest.DocTestFinder()
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(tests) >= 5
