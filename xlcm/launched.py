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
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

PATIENCE = timedelta(days=7)
"""How long a process waits for another one, where no config says it: one may have a longer share.
torch's own 10 minutes on GPUs are over while the first process still looks through the data."""

POLL_S = 1.0  # how often a process looks whether its launcher is there
GRACE_S = 30.0  # for a step and a checkpoint, as torch's launcher gives
LONG_S = 600.0  # for a step or a validation: then each process says where it is
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
    _say(f"{_me()}: the launcher (process id {launcher}) is gone; stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(128 + signal.SIGTERM)


@contextlib.contextmanager
def watched() -> Iterator[Callable[[str], None]]:
    """Yield `at(what)`, to be told what begins; what lasts 10 minutes is said, with the line.

    Each process says it, again every 10 minutes: where one waits in another line than the others,
    as for data, it is the one that they wait for. Alone, a process waits for none and is silent.
    """
    began = [("", time.monotonic())]
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield lambda what: None
        return
    over, thread = threading.Event(), threading.get_ident()

    def look() -> None:
        said: tuple[float, int] = (0.0, 0)
        while not over.wait(min(POLL_S, LONG_S)):
            what, since = began[0]
            now = (since, int((time.monotonic() - since) / LONG_S))
            if now[1] and now != said:
                said = now
                minutes = now[1] * LONG_S / 60
                _say(f"{_me()}: {what} has lasted {minutes:.0f} minutes, at {_line_of(thread)}")

    threading.Thread(target=look, daemon=True).start()
    try:
        yield lambda what: began.__setitem__(0, (what, time.monotonic()))
    finally:
        over.set()


def _line_of(thread: int) -> str:
    """Return `file:line (function)`, of this library's code the innermost."""
    stack = traceback.extract_stack(sys._current_frames()[thread])
    package = str(Path(__file__).parent)
    own = [frame for frame in stack if frame.filename.startswith(package)]
    frame = (own or stack)[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.name})"


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # its end of the pipe may be gone
        sys.stderr.write(line + "\n")  # at once, or another process's line would come in between
        sys.stderr.flush()


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
        _say(
            f"{recipe}: {_me()} can't reach the others any more; if one of them has failed, its "
            f"own message says why ({said})"  # whole: NCCL has the reason in its last line
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
        _say(f"{recipe}: {_me()} ended with the same fault")
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
