"""Chat templates rendered in a separate process with limited time and memory."""

import json
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers.utils import chat_template_utils

from ...errors import Fault, InputError

# CPU time limits of one rendering and of all: normal templates take 0.1 to 1 ms per text, less than 1e-6 s
# per character
_SECONDS = 10
_TOTAL_SECONDS = 60.0
_SECONDS_PER_RENDERING = 0.02
_SECONDS_PER_CHARACTER = 2e-5

# -P: modules in the folder of the script must not shadow others of the same name
_COMMAND = [sys.executable, "-P", str(Path(__file__).with_name("template_worker.py"))]
_LOCK = threading.RLock()


class TemplateProcess:
    """A compiled template for transformers that is rendered in another process.

    Parameters
    ----------
    template
        Jinja template from an untrusted source.
    """

    def __init__(self, template: str) -> None:
        # transformers parses the template again to find its variables; parsing runs no template code
        self.environment = chat_template_utils._compile_jinja_template("").environment
        self._template = template
        self._process: subprocess.Popen[bytes] | None = None
        self._fault = ""
        self._count, self._seconds, self._allowed = 0, 0.0, _TOTAL_SECONDS

    def render(self, **variables: Any) -> str:
        """Render the template.

        Parameters
        ----------
        **variables
            Plain data.

        Raises
        ------
        jinja2.TemplateError
            If the template raises an error, or takes too much time or memory; it is not tried again then.
        InputError
            If all renderings together take far longer than those of a normal template.
        """
        with _LOCK:
            if self._seconds > self._allowed:
                problem = f"the chat template is too slow: {self._seconds:,.0f} s for {self._count:,} texts"
                raise InputError([Fault("chat", problem, "correct the template, or use another model")])
            answer = {"fault": self._fault} if self._fault else self._ask(variables)
        if "fault" in answer:
            raise TemplateError(answer["fault"])
        return str(answer["text"])

    def _ask(self, variables: dict[str, Any]) -> dict[str, Any]:
        line, request = b"", json.dumps(variables).encode() + b"\n"
        with suppress(BrokenPipeError):
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(request)
            process.stdin.flush()
            line = process.stdout.readline()
        if line.endswith(b"\n"):
            answer = dict(json.loads(line))
            self._count += 1
            self._seconds += answer["seconds"]
            self._allowed += _SECONDS_PER_RENDERING + _SECONDS_PER_CHARACTER * len(request)
            return answer
        assert self._process is not None
        code = self._process.wait()
        timed_out = code == -signal.SIGPROF
        self._fault = f"it takes more than {_SECONDS} s" if timed_out else f"its process ended with {code}"
        return {"fault": self._fault}

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603 - a script of this package
                [*_COMMAND, str(_SECONDS)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            weakref.finalize(self, _stop, self._process)
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(self._template).encode() + b"\n")
        return self._process

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Make transformers use this object as the compiled template within the context."""
        with _LOCK:
            original = chat_template_utils._compile_jinja_template
            chat_template_utils._compile_jinja_template = lambda template: (  # type: ignore[assignment]
                self if template == self._template else original(template)
            )
            try:
                yield
            finally:
                chat_template_utils._compile_jinja_template = original


def _stop(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()
    process.kill()
    process.wait()
