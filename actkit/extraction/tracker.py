"""The process that tells Weights & Biases what it is told: the only place that imports wandb.

`tracking` starts it as a script and talks to it in lines of JSON: an opening, then events. It answers
`{"at": …}` once it is known where the figures go, and `{"fault": …}` before it ends for a fault.
"""

import json
import os
import sys
from typing import IO, Any


def main() -> None:
    """Serve until the input ends."""
    # a service that wandb starts would hold both open; and it may print
    lines, answers = (os.fdopen(os.dup(at), mode, encoding="utf-8") for at, mode in enumerate("rw"))
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    try:
        opening = json.loads(lines.readline())
        if "init" in opening:
            _track(opening, lines, answers)
        else:
            _check(opening["mode"])
    except Exception as error:
        _answer(answers, fault=" ".join(str(error).split()) or type(error).__name__)
        sys.exit(1)


def _answer(answers: IO[str], **answer: str) -> None:
    print(json.dumps(answer), file=answers, flush=True)


def _check(mode: str | None) -> None:
    """Fail where nobody is logged in who has to be."""
    import wandb

    if wandb.setup(wandb.Settings(mode=mode) if mode else None).settings.mode == "online":
        wandb.login(verify=False)  # which would ask the network


def _track(opening: dict[str, Any], lines: IO[str], answers: IO[str]) -> None:
    """Pass events on, from the first to the last."""
    import wandb

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        x_stats_pid=os.getppid(),  # the memory and the processors that it shows are to be the extraction's
    )
    run = wandb.init(**opening["init"], settings=settings)
    _answer(answers, at=run.url or os.path.dirname(run.dir))
    run.define_metric("*", step_metric="samples")
    run.summary.update(opening["summary"])
    state = ""
    for line in lines:
        event = json.loads(line)
        state = event["state"]
        if event["figures"]:
            run.log(event["figures"])
    run.summary["state"] = state
    run.finish(exit_code=0 if state == "done" else 1)


if __name__ == "__main__":
    main()
