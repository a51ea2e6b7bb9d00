"""The folder of a rollout: names of its files, and whether a run may begin or continue there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2former_calc.md.recording import RecordingFiles
from e2former_calc.md.trajectory_files import topology_path
from e2former_calc.report.tables import json_ready
from e2former_calc.report.writing import OLD_FILES, SUMMARY, remove_partial
from e2former_calc.rollout.plan import RolloutPlan

PLAN = "plan.json"


@dataclass(frozen=True)
class RolloutFolder:
    """Where a rollout is written.

    Attributes:
        path: the folder, which need not exist.
    """

    path: Path

    @property
    def recording(self) -> RecordingFiles:
        """Trajectories replica.h5md or replica-0.h5md, replica-1.h5md, ...; log; restart file."""
        return RecordingFiles(self.path / "replica.h5md", self.path / "log.csv", self.path / "rollout.restart")

    @property
    def plan(self) -> Path:
        """What is simulated; its presence marks the folder as one of a rollout."""
        return self.path / PLAN

    @property
    def summary(self) -> Path:
        """Result, or how far the run came."""
        return self.path / SUMMARY

    @property
    def restart(self) -> Path:
        """Where the run continues."""
        return self.path / "rollout.restart"

    def check(self, *, resume: bool, overwrite: bool) -> bool:
        """Refuse what would be lost; returns whether there is a run to be continued.

        Raises:
            FileExistsError: if a rollout is there and neither is asked for, or other files are.
            OSError: if the folder cannot be one.
            ValueError: if both are asked for.
        """
        if resume and overwrite:
            raise ValueError("--resume continues a rollout and --overwrite replaces it: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is a file, a folder is needed: choose another name")
        if not self.path.is_dir() or not any(self.path.iterdir()):
            return False
        if not self.plan.is_file():
            raise FileExistsError(f"the folder {self.path} is not empty and holds no rollout: choose another one")
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise PermissionError(f"the folder {self.path} is not writable: choose another one")
        if not (resume or overwrite):
            raise FileExistsError(
                f"the rollout in {self.path} is {self.status()}: add --resume to continue it or to write its report "
                "anew, --overwrite to replace it, or choose another folder"
            )
        return resume and self.restart.is_file()

    def status(self) -> str:
        """How far the run came, in words."""
        try:
            content = json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "not finished"
        return "finished" if isinstance(content, dict) and "verdict" in content else "not finished"

    def check_same(self, plan: RolloutPlan) -> tuple[str, ...]:
        """Refuse to continue a rollout of another plan; returns where its replicas started, in words.

        Raises:
            ValueError: naming what differs, or if the record of the plan is damaged.
        """
        try:
            record = json.loads(self.plan.read_text(encoding="utf-8"))
            earlier, origins = dict(record["plan"]), tuple(map(str, record["start"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self.plan} is damaged: start anew with --overwrite ({error})") from None
        found = plan.differences(earlier)
        if found:
            raise ValueError(f"the rollout in {self.path} is another one: {'; '.join(found)}")
        return origins

    def begin(self) -> None:
        """Make room for a new run; of an earlier one everything is removed, the restart file first."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.restart.unlink(missing_ok=True)
        remove_partial(self.path)
        trajectories = sorted(self.path.glob("replica*.h5md"))
        topologies = [topology_path(path, 0) for path in trajectories]
        reports = [file for pattern in OLD_FILES for file in self.path.glob(pattern)]
        for path in (*trajectories, *topologies, self.path / "log.csv", *reports):
            path.unlink(missing_ok=True)

    def note(self, plan: RolloutPlan, origins: Sequence[str], status: str, **more: Any) -> None:
        """Write the plan, where replicas started, and a summary that says how far the run came."""
        _write(self.plan, {"plan": plan.to_dict(), "start": list(origins)})
        _write(self.summary, {"format": "e2former_calc rollout", "status": status, "plan": plan.to_dict(), **more})


def _write(path: Path, content: Mapping[str, Any]) -> None:
    """Atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        text = json.dumps(json_ready(content), indent=2, ensure_ascii=False, allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
