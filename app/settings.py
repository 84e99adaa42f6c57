"""Settings and limits of the app, read from environment variables."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from actkit.errors import Fault, InputError
from actkit.regular_files import MB

from .allowed_urls import faults_of

PREFIX = "ACTKIT_"
# as actkit.extraction.cluster.connection, which imports torch, has it
_CLUSTER = re.compile(r"local:[1-9]\d{0,3}|(tcp|tls|ucx|ws|wss)://\S+|\S+\.ya?ml")


class Settings(BaseModel):
    """Settings, each of which is an environment variable: ``ACTKIT_WORKSPACE`` and so on."""

    model_config = ConfigDict(frozen=True)

    workspace: Path = Field(
        Path("runs"), description="folder of the runs; prompt files are in its subfolder `data`"
    )
    models: tuple[Path, ...] = Field((), description="folders that contain models, separated by colons")
    urls: tuple[str, ...] = Field(
        (),
        description="URLs of runs in object stores that may be explored, separated by spaces; one that ends "
        "in `/` allows all runs below it",
    )
    clusters: tuple[str, ...] = Field(
        (),
        description="clusters on which runs may be started, separated by spaces: `local:N`, the address of a "
        "scheduler, or the path of a YAML file for Slurm",
    )
    typed_models: bool = Field(False, description="whether users may type any Hugging Face id: 1 or 0")
    max_upload: int = Field(200 * MB, ge=1, description="maximum size of an uploaded file, in bytes")
    max_yaml: int = Field(MB // 8, ge=1, description="maximum size of an uploaded config, in bytes")
    max_preview_bytes: int = Field(
        200 * MB, ge=1, description="maximum size of a prompt file with a preview, in bytes"
    )
    preview_rows: int = Field(8, ge=1, description="rows shown in a preview")
    preview_characters: int = Field(300, ge=10, description="characters shown per cell of a preview")
    max_name: int = Field(80, ge=8, le=200, description="maximum length of the name of a run or file")
    max_runs: int = Field(1000, ge=1, description="maximum number of runs listed")
    max_active: int = Field(16, ge=1, description="maximum number of runs queued or running")
    max_samples: int = Field(
        1_000_000, ge=1, description="maximum number of samples of a run started in the app"
    )
    max_batch: int = Field(4096, ge=1, description="maximum batch size")
    plan_seconds: int = Field(300, ge=1, description="time limit of planning, in seconds")
    cancel_seconds: int = Field(
        60, ge=1, description="grace period between asking a run to stop and killing it, in seconds"
    )
    log_bytes: int = Field(16 * 1024, ge=1, description="bytes shown from the end of a log")
    poll_milliseconds: int = Field(
        1000, ge=100, description="interval between updates of the list of runs, in milliseconds"
    )

    @field_validator("models", mode="before")
    @classmethod
    def _folders(cls, value: Any) -> Any:
        return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value

    @field_validator("urls", "clusters", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        return tuple(value.split()) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _without_faults(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if faults := faults_of(value):
            raise ValueError("; ".join(map(str, faults)))
        return value

    @field_validator("clusters")
    @classmethod
    def _absolute_files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not _CLUSTER.fullmatch(name):
                raise ValueError(f"{name} is not a cluster")
        return tuple(
            str(Path(name).expanduser().resolve()) if name.endswith((".yaml", ".yml")) else name
            for name in value
        )

    @field_validator("workspace", "models")
    @classmethod
    def _absolute(cls, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(path.expanduser().resolve() for path in value)
        return value.expanduser().resolve()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the settings from an environment.

        Raises
        ------
        InputError
            If any setting is invalid; lists all faults.
        """
        variables = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if environment.get(PREFIX + name.upper())
        }
        try:
            return cls(**variables)
        except ValidationError as error:
            faults = [
                Fault(
                    PREFIX + str(detail["loc"][0]).upper(),
                    f"{detail['input']!r} is invalid: {detail['msg']}",
                    f"expected: {cls.model_fields[str(detail['loc'][0])].description}",
                )
                for detail in error.errors()
            ]
            raise InputError(faults, "the app cannot start") from error

    @property
    def data(self) -> Path:
        """Folder of the prompt files."""
        return self.workspace / "data"

    @property
    def queue(self) -> Path:
        """Folder in which runs queue for devices."""
        return self.workspace / ".queue"
