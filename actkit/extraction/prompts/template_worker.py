"""Worker process that renders an untrusted chat template, which is a program, with limited time and memory.

`template_process` starts this module as a script and sends lines of JSON: the template, then the variables of
each rendering. The worker answers `{"text": …}` or `{"fault": …}`, with the `seconds` of CPU time used. If a
rendering uses more CPU time than the argument of the script allows, a signal ends the process, whatever the
template does.
"""

import json
import os
import signal
import sys
import time
from typing import Any

MEMORY_MB = 512  # in addition to the memory of the process at its start
_MAX_CHARACTERS = 2**20  # in addition to the length of the input


def main() -> None:
    """Render templates until the input ends."""
    seconds = float(sys.argv[1])
    lines, answers = (os.fdopen(os.dup(at), mode, encoding="utf-8") for at, mode in enumerate("rw"))
    from transformers.utils.chat_template_utils import _compile_jinja_template

    _limit_memory()
    template = json.loads(lines.readline())
    for line in lines:
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer: dict[str, Any] = dict(_render(_compile_jinja_template, template, line))
        answer["seconds"] = time.process_time() - start
        print(json.dumps(answer), file=answers, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)


def _render(compiled: Any, template: str, line: str) -> dict[str, str]:
    try:
        text = compiled(template).render(**json.loads(line))
    except MemoryError:
        return {"fault": f"it takes more than {MEMORY_MB} MB of memory"}
    except Exception as error:  # templates raise any exception
        return {"fault": str(error)[:1000] or type(error).__name__}
    if len(text) > len(line) + _MAX_CHARACTERS:
        return {"fault": f"it writes {len(text):,} characters"}
    return {"text": text}


def _limit_memory() -> None:
    """Limit the memory of the process to slightly more than it uses now, on systems that report it."""
    import resource

    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_MB * 2**20,) * 2)


if __name__ == "__main__":
    sys.setrecursionlimit(500)
    main()
