"""The exported notebook under torchrun, by the README's lines: two processes on the CPU do the work of one."""
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, run_forked


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("script")
    run = nbformat.read(NOTEBOOK, as_version=4)
    run.metadata.language_info = {"name": "python", "file_extension": ".py"}  # an executed notebook has it, a copy without outputs may not
    nbformat.write(run, folder / "project.ipynb")
    subprocess.run([sys.executable, "-m", "nbconvert", "--to", "script", str(folder / "project.ipynb")], check=True, capture_output=True)
    return folder / "project.py"


def torchrun(script: Path, processes: int, folder: Path) -> subprocess.CompletedProcess:
    settings = {"PROFILE": "smoke", "ARTIFACTS_DIR": str(folder), "DATA_DIR": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                           str(script)], env=os.environ | settings, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def pair(script, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pair")
    result = torchrun(script, 2, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return {"folder": folder, "output": result.stdout, "errors": result.stderr, "metrics": json.loads((folder / "metrics.json").read_text())}


def test_two_processes_reach_the_same_scores(smoke, pair):
    one, two = smoke["metrics"], pair["metrics"]
    assert one["pretrain"]["train_tokens"] == two["pretrain"]["train_tokens"] and one["sft"]["rows"] == two["sft"]["rows"]
    assert two["pretrain"]["test_bpc"] == pytest.approx(one["pretrain"]["test_bpc"], abs=0.03)
    assert two["sft"]["eval_loss_before"] == pytest.approx(one["sft"]["eval_loss_before"], rel=0.02)
    assert two["sft"]["eval_loss_after"] == pytest.approx(one["sft"]["eval_loss_after"], rel=0.1)


def test_the_first_process_alone_prints_and_writes(smoke, pair):
    assert pair["output"].count("Файлов в списке") == pair["output"].count("Профиль smoke") == 1

    def written(run):
        return {path.relative_to(run["folder"]).as_posix() for name in ("figures", "tokenizer", "pretrain", "sft")
                for path in (run["folder"] / name).iterdir()}
    assert written(pair) == written(smoke) and not (pair["folder"] / "checkpoints").exists()


def test_the_processes_part_in_order(pair):
    """The notebook closes the exchange itself: no warning of a group that nobody destroyed."""
    assert "destroy_process_group" not in pair["errors"]


def test_a_batch_that_does_not_divide_is_refused_in_section_0(notebook, nb, tmp_path):
    """As three processes would: in the state that accelerate keeps."""
    run = run_forked(notebook, nb, [0], tmp_path / "out", script="PartialState(cpu=True)._shared_state['num_processes'] = 3")
    assert run.returncode == 1 and "не делится на процессы, их 3" in run.stdout.splitlines()[-1]
