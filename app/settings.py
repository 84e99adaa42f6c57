"""What the app is told by its environment, and its limits: one table."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from actkit.config import MB
from actkit.errors import Fault, InputError

PREFIX = "ACTKIT_"


class Settings(BaseModel):
    """Each field is an environment variable: ``ACTKIT_WORKSPACE`` and so on."""

    model_config = ConfigDict(frozen=True)

    workspace: Path = Field(
        Path("runs"), description="folder of the runs; files of prompts lie in its `data`"
    )
    models: tuple[Path, ...] = Field((), description="folders of models, with a colon between them")
    typed_models: bool = Field(False, description="whether any Hugging Face id may be typed: 1 or 0")
    max_upload: int = Field(200 * MB, ge=1, description="bytes of an uploaded file")
    max_yaml: int = Field(MB // 8, ge=1, description="bytes of a config that is loaded")
    max_preview_bytes: int = Field(
        200 * MB, ge=1, description="bytes of a file of prompts, beyond which there is no preview"
    )
    preview_rows: int = Field(8, ge=1, description="rows of a preview")
    preview_characters: int = Field(300, ge=10, description="characters of a cell of a preview")
    max_name: int = Field(80, ge=8, le=200, description="characters of the name of a run or file")
    max_runs: int = Field(1000, ge=1, description="runs of a workspace")
    max_active: int = Field(16, ge=1, description="runs that are queued or running")
    max_samples: int = Field(1_000_000, ge=1, description="samples of a run that is started here")
    max_batch: int = Field(4096, ge=1, description="prompts of a batch")
    plan_seconds: int = Field(300, ge=1, description="seconds that planning may take")
    cancel_seconds: int = Field(60, ge=1, description="seconds between asking a run to end, and ending it")
    log_bytes: int = Field(16 * 1024, ge=1, description="bytes of a log that are shown")
    poll_milliseconds: int = Field(1000, ge=100, description="milliseconds between two looks at the runs")

    @field_validator("models", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("workspace", "models")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(path.expanduser().resolve() for path in value)
        return value.expanduser().resolve()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings":
        """Read them.

        Raises
        ------
        InputError
            With everything that is wrong with them.
        """
        given = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if environment.get(PREFIX + name.upper())
        }
        try:
            return cls(**given)
        except ValidationError as error:
            faults = [
                Fault(
                    PREFIX + str(detail["loc"][0]).upper(),
                    f"{detail['input']!r} is not possible: {detail['msg']}",
                    f"give {cls.model_fields[str(detail['loc'][0])].description}",
                )
                for detail in error.errors()
            ]
            raise InputError(faults, "the app cannot start") from error

    @property
    def data(self) -> Path:
        """Where files of prompts lie."""
        return self.workspace / "data"

    @property
    def queue(self) -> Path:
        """Where runs wait for their turn."""
        return self.workspace / ".queue"
