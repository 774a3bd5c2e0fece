"""`accelerate launch` on 1, 2 and 2 x 2 processes: the same run of every method, also resumed."""

import json
import subprocess
import sys

import launched
import pytest
import tiny
from tiny_methods import NORMED, cl2cm, languages, nrccr

from xlcm.config import merge
from xlcm.models import dual_encoder
from xlcm.registry import methods
from xlcm.training.checkpoint import steps

STEPS = 20
LAUNCHED = tiny.REPOSITORY / "tests" / "launched.py"
NODES = tiny.REPOSITORY / "configs" / "accelerate" / "nodes.yaml"
REL = {"c2kd": 1e-5}  # its teacher's embeddings are kept in single precision
RESUMED = {"contrastive": 5, "nrccr": 10}  # NRCCR has batch norm and an opponent beside
NAMES = ["contrastive", "triplet", "translate_train", "nrccr", "c2kd", "cl2cm"]


def configs(data, output, teacher):
    """Every method on captions by machine translation, in folders below `output`."""
    triplet = {"name": "triplet", "reduction": "sum"}
    both = {"name": "contrastive", "text_weight": 0.5}
    found = {
        "contrastive": nrccr(data, output) | {"method": both},
        "triplet": nrccr(data, output) | {"method": both | {"image_loss": triplet}},
        "translate_train": languages(data, output, {"name": "translate_train"}),
        "nrccr": merge(nrccr(data, output), NORMED),
        "c2kd": languages(data, output, {"name": "c2kd", "teachers": [teacher]}),
        "cl2cm": cl2cm(data, output),
    }
    assert list(found) == NAMES
    for name, config in found.items():
        config["run"] = {**config["run"], "steps": STEPS, "output": str(output / name)}
    return list(found.values())


def resumed(data, output, *, crash=False):
    """Some of these runs, with checkpoints; or what comes of them up to a crash behind one."""
    found = dict(zip(NAMES, configs(data, output, "no teacher")))
    return [
        merge(found[name], {"run": {"save_every": at}})
        | ({"crash_before": at + 3} if crash else {})
        for name, at in RESUMED.items()
    ]


def two_nodes(*arguments):
    """Return the commands of two launchers that each start half of 4 processes."""
    port = tiny.free_port()
    return [
        [
            sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(NODES), "--num_machines", "2",
            "--num_processes", "4", "--machine_rank", str(node), "--main_process_ip", "127.0.0.1",
            "--main_process_port", port, str(LAUNCHED), *arguments,
        ]
        for node in range(2)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_data, tmp_path_factory):
    """Number of processes -> folder with the runs of all methods."""
    folder = tmp_path_factory.mktemp("launch")
    taught = tiny.train(languages(tiny_data, folder / "teacher", {"name": "translate_train"}))
    teacher = taught.trained.retriever.save_pretrained(folder / "model", languages=["en"])
    grown, shrunk = folder / "1 to 2", folder / "2 to 1"
    more = {
        1: resumed(tiny_data, grown, crash=True),
        2: resumed(tiny_data, grown) + resumed(tiny_data, shrunk, crash=True),
        4: [],
    }
    for number in (1, 2, 4):
        given = configs(tiny_data, folder / str(number), str(teacher)) + more[number]
        if number == 1:
            here(folder / "1.json", given)
            crashed(grown)
            continue
        listed = folder / f"{number}.json"
        listed.write_text(json.dumps(given))
        asked = (str(listed), str(number))
        command, environment = tiny.command(str(LAUNCHED), *asked, processes=number)
        environment["PYTHONPATH"] += f":{LAUNCHED.parent}"
        commands = two_nodes(*asked) if number == 4 else [command]
        started = [
            subprocess.Popen(
                c, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
            for c in commands
        ]
        try:
            errors = [process.communicate(timeout=300)[1] for process in started]
        finally:
            for process in started:
                process.kill()
        assert [process.returncode for process in started] == [0] * len(started), errors
    crashed(shrunk)
    here(folder / "again.json", resumed(tiny_data, shrunk))
    return folder


def crashed(output):
    """See that the runs are where they are to be continued, behind their checkpoint."""
    for name, at in RESUMED.items():
        assert steps(output / name / "checkpoints") == [at]
        assert len(tiny.metrics(output / name)) == at + 3


def here(listed, given):
    """One process has no launcher: here, where all is imported."""
    listed.write_text(json.dumps(given))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dual_encoder, "_unit", dual_encoder._unit)  # it changes that
        launched.main(str(listed), "1")


def same(runs, one, many, name):
    left, right = (tiny.metrics(runs / str(number) / name) for number in (one, many))
    assert len(left) == len(right) == STEPS
    for before, after in zip(left, right):
        assert before.keys() == after.keys()
        del before["padding"]  # the first process pads to its own longest captions
        for key, value in before.items():
            at = (before["step"], key)
            assert after[key] == pytest.approx(value, rel=REL.get(name, 1e-6)), at


def test_no_method_is_left_out_of_these_runs(tmp_path):
    found = {config["method"]["name"] for config in configs(tmp_path, tmp_path, "none")}
    assert found == tiny.built_in(methods)


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_processes_changes_nothing_of_a_run(runs, name, processes):
    same(runs, 1, processes, name)


@pytest.mark.parametrize("change", ["1 to 2", "2 to 1"])
@pytest.mark.parametrize("name", RESUMED)
def test_a_run_resumed_on_another_number_of_processes_is_the_unbroken_one(runs, name, change):
    same(runs, 1, change, name)
