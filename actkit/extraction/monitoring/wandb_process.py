"""Process that sends metrics to Weights & Biases, and the only module that imports wandb.

`wandb_sink` starts it as a script and sends it lines of JSON: an opening, then events. It answers
`{"at": …}` once the destination of the metrics is known, and `{"fault": …}` before an error ends it.
"""

import json
import os
import sys
from typing import IO, Any


def main() -> None:
    """Process lines until the input ends."""
    # a service that wandb starts would keep both open, and may print
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
    """Raise an error if a login is required and missing."""
    import wandb

    if wandb.setup(wandb.Settings(mode=mode) if mode else None).settings.mode == "online":
        wandb.login(verify=False)  # verification would access the network


def _track(opening: dict[str, Any], lines: IO[str], answers: IO[str]) -> None:
    """Forward all events to Weights & Biases."""
    import wandb

    settings = wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        x_stats_pid=os.getppid(),  # report memory and CPU usage of the extraction
    )
    run = wandb.init(**opening["init"], settings=settings)
    _answer(answers, at=run.url or os.path.dirname(run.dir))
    run.define_metric("*", step_metric="samples")
    run.summary.update(opening["summary"])
    state = ""
    for line in lines:
        event = json.loads(line)
        state = event["state"]
        if event["metrics"]:
            run.log(event["metrics"])
    run.summary["state"] = state
    run.finish(exit_code=0 if state == "done" else 1)


if __name__ == "__main__":
    main()
