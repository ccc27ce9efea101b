"""The exported notebook under torchrun, by the README's lines: two processes on the CPU do the work of one, and so do two machines."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import spy
from conftest import NOTEBOOK, ROOT, run_forked, smoke_settings

QUICK = {"EPOCHS": 1}  # without dropout, whose dice processes do not share; spy.py also cuts generation short
FLAGS = ["even", "calm", "brief"]


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("script")
    (folder / "project.ipynb").write_bytes(NOTEBOOK.read_bytes())
    export = [sys.executable, "-m", "nbconvert", "--to", "script", str(folder / "project.ipynb")]
    subprocess.run(export, check=True, capture_output=True)
    return folder / "project.py"


def start(script: Path, folder: Path, launch: list[str], flags: list[str], **settings) -> subprocess.Popen:
    environment = os.environ | smoke_settings(
        folder / "out", QUICK | {"DEVICE_BATCH": 2, "OMP_NUM_THREADS": 1} | settings
    )
    command = [sys.executable, "-m", "torch.distributed.run", *launch, spy.__file__, str(script), str(folder), *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def pair(script, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pair")
    process = start(script, folder, ["--standalone", "--nproc_per_node=2"], FLAGS)
    output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    return {
        "folder": folder,
        "output": output,
        "errors": errors,
        "metrics": metrics,
        "trainings": [spy.read(folder, i) for i in (0, 1)],
    }


@pytest.fixture(scope="module")
def one(notebook, nb, tmp_path_factory) -> dict:
    """The same by one process, with every training cell run twice: the second time nothing happens."""
    folder = tmp_path_factory.mktemp("one")
    twice = re.compile(r"(?<!def )\b(pretrain|train_to_end)\(")
    cells = [[cell] * (1 + bool(twice.search(cell.source))) for cell in notebook.cells]
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import spy; spy.watch({str(folder)!r}, {FLAGS})"
    run = run_forked(SimpleNamespace(cells=sum(cells, [])), nb, None, folder / "out", script=code, **QUICK)
    assert run.returncode == 0, run.stdout[-1000:]
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    return {"folder": folder, "output": run.stdout, "metrics": metrics, "trainings": spy.read(folder)}


def test_a_training_cell_run_twice_trains_once(one):
    assert len(one["trainings"]) == 4 and one["output"].count("уже закончено") == 4


def test_two_processes_reach_the_same_scores(one, pair):
    """The sums of two processes with two rows at once are those of one with eight."""
    alone, together = one["trainings"], pair["trainings"][0]
    for first, second in zip(alone, together, strict=True):
        batch = [x["arguments"]["per_device_train_batch_size"] * x["arguments"]["gradient_accumulation_steps"] * x["processes"]
                 for x in (first, second)]  # fmt: skip
        assert batch == [8, 8] and (second["processes"], second["arguments"]["per_device_train_batch_size"]) == (2, 2)
        assert second["arguments"]["per_device_eval_batch_size"] == 2 and first["steps"] == second["steps"]
        if first["class"] != "SFTTrainer":  # there rows of like length share a batch, whatever a process's part
            for key in ("loss", "eval_bpc", "grad_norm"):
                values = [[row[key] for row in x["log"] if key in row] for x in (first, second)]
                assert values[1] == pytest.approx(values[0], rel=1e-4) and values[0], key
    for first, second in zip(one["metrics"]["pretrain"]["runs"], pair["metrics"]["pretrain"]["runs"], strict=True):
        assert [second[key] for key in ("val_bpc", "test_bpc")] == pytest.approx(
            [first[key] for key in ("val_bpc", "test_bpc")], rel=1e-4
        )
    first, second = one["metrics"]["sft"], pair["metrics"]["sft"]
    assert second["eval_loss_before"] == pytest.approx(first["eval_loss_before"], rel=0.02)  # a mean of batches' means
    assert second["eval_loss_after"] == pytest.approx(first["eval_loss_after"], rel=0.1)
    assert (
        one["metrics"]["pretrain"]["train_tokens"] == pair["metrics"]["pretrain"]["train_tokens"]
        and first["rows"] == second["rows"]
    )


def test_every_row_is_seen_once_an_epoch(one, pair):
    """In both stages, by the two processes together, as by one."""
    for alone, first, second in zip(one["trainings"], *pair["trainings"], strict=True):
        assert len(first["rows"]) == len(second["rows"]) == len(alone["rows"])
        for rows, others, whole in zip(first["rows"], second["rows"], alone["rows"]):
            assert len(rows) == len(others) and len({*rows, *others}) == len(rows + others) == len(whole)


def test_the_first_process_alone_prints_and_writes(one, pair, smoke):
    assert pair["output"].count("Профиль smoke") == 1 and pair["output"].count("Весь блокнот") == 1
    lines = [line for line in pair["output"].splitlines() if line.startswith("Эпоха ")]
    assert len(lines) == 3 + 1  # one an epoch, and the untrained model's

    def written(folder):
        names = {
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and "data" not in path.parts
        }
        return {name.split("-")[0] + "/" + Path(name).name if name.startswith("runs/") else name for name in names}

    assert written(pair["folder"] / "out") == written(smoke["folder"]) == written(one["folder"] / "out")
    assert "destroy_process_group" not in pair["errors"]


def test_two_machines_train_as_two_processes_of_one(script, pair, tmp_path):
    """Two agents of torchrun that meet at an address, as the README's line for several hosts; after the first training both leave."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launch = [
        "--nnodes=2",
        "--nproc_per_node=1",
        "--rdzv_backend=c10d",
        f"--rdzv_endpoint=localhost:{port}",
        "--rdzv_id=1",
    ]
    agents = [start(script, tmp_path, launch, [*FLAGS, "first"], RECIPE="plain") for _ in range(2)]
    errors = [agent.communicate(timeout=200)[1][-2000:] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    first, second = (spy.read(folder)[0] for folder in (pair["folder"], tmp_path))
    assert second["processes"] == 2 and second["rows"] == first["rows"]
    for key in ("loss", "eval_bpc", "grad_norm"):
        values = [[row[key] for row in x["log"] if key in row] for x in (first, second)]
        assert values[0] == pytest.approx(values[1], rel=1e-6)
