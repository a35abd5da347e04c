"""Adds files to the wheel: startup files beside the package; tasks, artifacts and weights inside it.

An editable install needs the startup files only: `truthgate_eval.paths.shipped` finds the folders in the
checkout.
"""

from pathlib import Path

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

STARTUP = ("truthgate_eval_autoload.pth", "truthgate_eval_autoload.start", "_truthgate_autoload.py")
FOLDERS = ("tasks", "score_artifacts")
# Early states of trainings (`truthgate_eval.packaged.models.EARLY`) stay in the repository.
EARLY = "-early"


class StartupFiles(BuildHookInterface):
    """Hatchling's custom build hook."""

    def initialize(self, version, build_data):
        """Add the files; `version` is `standard` or `editable`."""
        root = Path(self.root)
        startup = {str(root / "startup" / name): name for name in STARTUP}
        if version == "editable":
            build_data["force_include_editable"].update(startup)
            return
        weights = [path for path in (root / "packaged_weights").iterdir() if not path.name.endswith(EARLY)]
        folders = [*(root / name for name in FOLDERS), *sorted(weights)]
        build_data["force_include"].update(startup)
        build_data["force_include"].update(
            {str(path): f"truthgate_eval/{path.relative_to(root).as_posix()}" for path in folders}
        )
