"""Where a run is kept, and what it was started with."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from common.config import read_text, to_json
from common.errors import InputError
from common.randomness import fresh_key
from common.storage import make_private_directory, write_private
from simulations.experiment import Experiment


@dataclass(frozen=True)
class RunFolder:
    """Where a run is kept; `settings.json` says what it was started with."""

    path: Path
    run_id: str

    @staticmethod
    def start(path: Path | None, experiment: Experiment) -> RunFolder:
        """Create a new run folder; one that already holds something is an InputError."""
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{fresh_key()[:3].hex()}"
        folder = path if path is not None else Path("runs") / run_id
        check_free(folder)
        make_private_directory(folder)
        settings = {"run_id": run_id, "experiment": json.loads(to_json(experiment))}
        write_private(folder / "settings.json", json.dumps(settings, indent=2).encode())
        return RunFolder(folder, run_id)

    @staticmethod
    def resume(path: Path | None, experiment: Experiment) -> RunFolder:
        """Open a run folder to go on with; other options than it was started with are refused."""
        if path is None or not (path / "settings.json").is_file():
            raise InputError("--resume needs --out with the folder of a run that was started")
        try:
            settings = json.loads(read_text(path / "settings.json"))
            run_id, started = str(settings["run_id"]), settings["experiment"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path / 'settings.json'} cannot be read: {error}") from error
        asked = json.loads(to_json(experiment))
        for name in sorted(set(started) | set(asked)):
            if started.get(name) != asked.get(name):
                raise InputError(
                    f"the run was started with {name} = {started.get(name)!r}, "
                    f"not {asked.get(name)!r}",
                    hint="resume with the same options",
                )
        return RunFolder(path, run_id)

    def keep_people(self, people: str) -> None:
        """Note whose faces a run is of, at its start; other people than then are an InputError.

        `people` is `Material.people`. With a folder that changed, persons would be dealt anew: from
        one site to another, or from a site into the public bank.
        """
        path = self.path / "settings.json"
        settings = json.loads(read_text(path))
        begun = any(entry != path for entry in self.path.iterdir())
        if "people" not in settings and not begun:
            settings["people"] = people
            write_private(path, json.dumps(settings, indent=2).encode())
        if settings.get("people") != people:
            raise InputError(
                f"{self.path} was started with other people, or with other pictures of them",
                hint="put the folder back as it was, or begin a new run",
            )

    def abandon(self) -> None:
        """Remove a folder in which nothing but the settings was written: the run never began."""
        if [entry.name for entry in self.path.iterdir()] == ["settings.json"]:
            (self.path / "settings.json").unlink()
            self.path.rmdir()


def check_free(folder: Path, *, resumable: bool = False) -> None:
    """Raise InputError unless a new folder can be made there, or an empty one used.

    A run is never written over another, and nobody computes for hours what cannot be kept.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(
            f"{folder} already exists and is not empty",
            hint="choose another --out" + ", or add --resume to go on with that run" * resumable,
        )
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise InputError(f"{there} is a file", hint="--out names a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"nothing can be written in {there}", hint="choose another --out")
