"""Two processes of `recipes/translate.py`, killed at any moment: no line is lost or made twice."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
from test_translate import asked, config, manifest, run, shouting  # noqa: F401 -- a fixture

from xlcm.data.manifest import read_manifest
from xlcm.translation.scenes_table import ScenesTable

REPOSITORY = Path(__file__).resolve().parents[2]
TEXTS, BATCH = 62, 4  # 31 different captions and their ways back; lines of a batch


def recipe_in_pool(path, log, victims, after):
    """Run the recipe; the victims kill themselves with a batch in hand, behind `after` others."""
    import torch.distributed as dist

    tiny.join_pool()
    whole, made, rank = ScenesTable.translate, [], dist.get_rank()

    def watched(self, texts, source, target):
        with open(log, "a") as file:
            file.write("".join(f"{source}-{target} {text}\n" for text in texts))
        if rank in victims and len(made) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(texts)
        return whole(self, texts, source, target)

    ScenesTable.translate = watched
    return tiny.recipe("translate.py").main(str(path))


@pytest.mark.parametrize(
    "victims", [[(0, 1), (1,)], pytest.param([(0,), (0, 1), (1,)], marks=pytest.mark.slow)]
)
def test_processes_that_were_killed_go_on_without_a_lost_or_doubled_line(
    manifest, tmp_path, processes, victims  # noqa: F811 -- the fixture
):  # fmt: skip
    path, log = tmp_path / "config.yaml", tmp_path / "made.txt"
    given = config(manifest, back=True)
    path.write_text(json.dumps(given))
    for number, killed in enumerate(victims):
        with pytest.raises(RuntimeError, match="ended without a result"):
            processes.run(2, recipe_in_pool, path, log, killed, number)
        assert not Path(given["output"]).exists()
    assert processes.run(2, recipe_in_pool, path, log, (), 0) == [0, 0]
    lines = log.read_text().splitlines()
    assert len(set(lines)) == TEXTS
    # where one dies, the pool ends the other one, which may have a batch in hand as well
    assert len(lines) <= TEXTS + BATCH * 2 * len(victims)
    alone = config(manifest, output=str(tmp_path / "alone.jsonl"))
    run(alone)
    assert Path(given["output"]).read_bytes() == Path(alone["output"]).read_bytes()


@pytest.mark.slow
def test_when_one_process_is_killed_the_other_one_writes_no_manifest(
    manifest, tmp_path  # noqa: F811 -- the fixture
):  # fmt: skip
    """Real processes, as a launcher starts them; it takes some 20 s to import all four times."""
    given = config(manifest, engine=shouting(tmp_path, pause=0.2))
    path, out = tmp_path / "config.yaml", tmp_path / "out.jsonl"
    path.write_text(json.dumps(given))

    def start() -> list[subprocess.Popen]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(REPOSITORY),
            "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
        command = [sys.executable, str(REPOSITORY / "recipes" / "translate.py"), str(path)]
        ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        return [subprocess.Popen(command, env={**environment, **own}) for own in ranks]

    for goal, killed in ((6, [1]), (24, [0, 1]), (40, [0])):
        children = start()
        while len(asked(tmp_path)) < goal and all(child.poll() is None for child in children):
            time.sleep(0.01)
        for rank in killed:
            children[rank].send_signal(signal.SIGKILL)
        codes = [child.wait(timeout=60) for child in children]  # nobody waits for ever
        assert all(codes), "one process ended as if all were done"
        assert [codes[rank] for rank in killed] == [-signal.SIGKILL] * len(killed)
        assert not out.exists()
    assert [child.wait(timeout=60) for child in start()] == [0, 0]
    lines = asked(tmp_path)
    assert len(set(lines)) == TEXTS
    assert len(lines) <= TEXTS + BATCH * 4  # a batch of each that was killed
    ids = [c.id for item in read_manifest(out) for c in item.captions]
    assert len(ids) == len(set(ids)) == 80 + 2 * 39
