"""Lets released versions of lm-eval and lmms-eval find truthgate_eval.

Python runs `arm` at every start of the interpreter (see the .pth file beside this one), so it imports
nothing. When a harness loads one of the modules of `WATCHED`, `truthgate_eval.harness.autoload.on_import`
is called with the module's name once that module is ready. The patches that it applies, and when each can
go, are in the `patches` modules of `truthgate_eval/harness/`. See `docs/harnesses.md#registration`.
"""

import sys

WATCHED = ("lm_eval.models", "lm_eval.tasks.manager", "lmms_eval.tasks")


class _Finder:
    """The first entry of sys.meta_path, until every watched module has been imported."""

    def __init__(self, names):
        self.waiting = set(names)
        self._searching = set()

    def find_spec(self, name, path=None, target=None):  # noqa: ARG002 (the import system's signature)
        if name not in self.waiting or name in self._searching:
            return None
        from importlib.util import find_spec

        self._searching.add(name)  # the search below calls this finder again
        try:
            spec = find_spec(name)
        finally:
            self._searching.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self)
        return spec

    def imported(self, name):
        self.waiting.discard(name)
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _Loader:
    """The module's own loader, with a call of our hook after it."""

    def __init__(self, loader, finder):
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name):
        return getattr(self._loader, name)

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        # Not earlier: a program may only ask for the spec, or its import may fail and be tried again.
        self._finder.imported(module.__name__)
        _run_hook(module.__name__)


def _run_hook(name):
    try:
        from truthgate_eval.harness import autoload

        autoload.on_import(name)
    except Exception as error:  # a harness must never break because of us
        import warnings

        warnings.warn(
            f"truthgate_eval could not register itself with {name}: {error!r}", RuntimeWarning, stacklevel=2
        )


def arm():
    """Watch for the harnesses' modules; for one that is loaded already, the hook runs at once."""
    for finder in sys.meta_path:
        if type(finder).__name__ == "_Finder" and type(finder).__module__ == __name__:
            return
    loaded = [name for name in WATCHED if name in sys.modules]
    waiting = [name for name in WATCHED if name not in sys.modules]
    if waiting:
        sys.meta_path.insert(0, _Finder(waiting))
    for name in loaded:
        _run_hook(name)
