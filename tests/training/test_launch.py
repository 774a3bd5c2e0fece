"""`accelerate launch` on 1, 2 and 2 x 2 processes: the same run of every method."""

import json
import subprocess
import sys

import launched
import pytest
import tiny
from tiny_methods import NORMED, cl2cm, languages, nrccr

from xlcm.config import merge
from xlcm.models import dual_encoder

STEPS = 20
LAUNCHED = tiny.REPOSITORY / "tests" / "launched.py"
NODES = tiny.REPOSITORY / "configs" / "accelerate" / "nodes.yaml"
REL = {"c2kd": 1e-5}  # its teacher's embeddings are kept in single precision
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
    for number in (1, 2, 4):
        listed = folder / f"{number}.json"
        listed.write_text(json.dumps(configs(tiny_data, folder / str(number), str(teacher))))
        asked = (str(listed), str(number))
        if number == 1:  # has no launcher: here, where all is imported
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(dual_encoder, "_unit", dual_encoder._unit)  # it changes that
                launched.main(*asked)
            continue
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
    return folder


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_processes_changes_nothing_of_a_run(runs, name, processes):
    one, many = (tiny.metrics(runs / str(number) / name) for number in (1, processes))
    assert len(one) == len(many) == STEPS
    for left, right in zip(one, many):
        assert left.keys() == right.keys()
        for key, value in left.items():
            assert right[key] == pytest.approx(value, rel=REL.get(name, 1e-6)), (left["step"], key)
