"""The processes that a launcher started together: how long they wait, how they end, what they say.

torch's launcher, which `accelerate launch` uses for several processes, ends all when one fails and
then sums up. What it can't know is done here: a fault is told once and named in its summary, those
that only lost a failed process say so in a line, and none outlives the launcher.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

PATIENCE = timedelta(days=7)
"""How long a process waits for another one, where no config says it: one may have a longer share.
torch's own 10 minutes on GPUs are over while the first process still looks through the data."""

POLL_S = 1.0  # how often a process looks whether its launcher is there
GRACE_S = 30.0  # for a step and a checkpoint, as torch's launcher gives
ECHO_S = 3.0  # the launcher's summary blames whoever ended first

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # one a process; the launcher reads it
LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_DYNAMO_MODE")
"""What torch's launcher, and accelerate's for a single process, leave in the environment."""


def patient(timeout: timedelta = PATIENCE) -> list[Any]:
    """Return the `kwargs_handlers` of an Accelerator whose processes wait so long for one another.

    Every recipe opens its Accelerator with them.

    Args:
        timeout: after which a process takes the others for dead and ends with an error.
    """
    from accelerate import InitProcessGroupKwargs

    # accelerate drops what equals its own default, which is 10 minutes, also where torch's is not
    return [InitProcessGroupKwargs(timeout=timeout + timedelta(microseconds=1))]


def end_with_launcher() -> None:
    """End this process if its launcher ends without it, as by SIGKILL: nobody would do it later.

    It gets SIGTERM, so that training writes a checkpoint, and is ended after 30 seconds. For a
    single process that is the way of SIGTERM too, which accelerate's launcher doesn't pass on.
    Without a launcher nothing is watched: a shell that goes leaves its jobs running.
    """
    if not any(name in os.environ for name in LAUNCHED):
        return
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(POLL_S)
    with contextlib.suppress(OSError):  # its end of the pipe may be gone too
        said = f"{_me()}: the launcher (process id {launcher}) is gone; stopping"
        print(said, file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)


def is_told(error: Exception, recipe: str) -> bool:
    """Return whether a fault that ends this process is told already, and a line here is enough.

    One that is not is put down for the launcher's summary, which comes last on the screen.

    Args:
        error: what ends this process; of one alone nothing is told.
        recipe: named in the line.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    said = f"{type(error).__name__}: {error}"
    if _of_the_others(error):
        print(
            f"{recipe}: {_me()} can't reach the others any more; if one of them has failed, its "
            f"own message says why ({said})",  # whole: NCCL has the reason in its last line
            file=sys.stderr,
            flush=True,
        )
        time.sleep(ECHO_S)
        return True
    file = os.environ.get(ERROR_FILE)
    if not file:
        return False
    try:
        # beside the folders of this machine's processes: whoever makes it is the first to say so
        digest = hashlib.sha256(said.encode(errors="replace")).hexdigest()[:16]
        Path(file).parent.parent.joinpath(f"told-{digest}").touch(exist_ok=False)
        extra = {"timestamp": str(int(time.time()))}
        content = json.dumps({"message": {"message": said, "extraInfo": extra}})
        Path(file).write_text(content, encoding="utf-8")
    except FileExistsError:
        print(f"{recipe}: {_me()} ended with the same fault", file=sys.stderr, flush=True)
        return True
    except OSError:  # no summary then
        pass
    return False


def _me() -> str:
    return f"process {os.environ.get('RANK', '0')} of {os.environ.get('WORLD_SIZE', '1')}"


def _of_the_others(error: Exception) -> bool:
    """Whether it is what gloo, NCCL or the store say when another process is gone."""
    import torch.distributed as dist

    if not dist.is_available():
        return False
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo/transport" in str(error)
    )
