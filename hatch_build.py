"""Adds files to the wheel: startup files beside the package; tasks, artifacts and weights inside it.

An editable install needs the startup files only: `truthgate_eval.paths.shipped` finds the folders in the
checkout.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STARTUP = ("truthgate_eval_autoload.pth", "truthgate_eval_autoload.start", "_truthgate_autoload.py")
FOLDERS = ("tasks", "score_artifacts", "packaged_weights/smollm2-135m-scenes")


class StartupFiles(BuildHookInterface):
    """Hatchling's custom build hook."""

    def initialize(self, version, build_data):
        """Add the files; `version` is `standard` or `editable`."""
        root = Path(self.root)
        startup = {str(root / "startup" / name): name for name in STARTUP}
        if version == "editable":
            build_data["force_include_editable"].update(startup)
            return
        build_data["force_include"].update(startup)
        build_data["force_include"].update({str(root / name): f"truthgate_eval/{name}" for name in FOLDERS})
