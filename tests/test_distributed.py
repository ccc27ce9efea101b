"""The exported notebook under torchrun: two processes on the CPU do the work of one."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("script")
    subprocess.run([sys.executable, "-m", "nbconvert", "--to", "script", "project.ipynb", "--output-dir", str(folder)],
                   check=True, capture_output=True)
    path, closing = folder / "project.py", "PartialState().destroy_process_group()"  # or gloo's threads may abort the exit
    assert f"echo '{closing}' >> project.py" in Path("README.md").read_text(encoding="utf-8")
    path.write_text(path.read_text(encoding="utf-8") + closing + "\n", encoding="utf-8")
    return path


def torchrun(script: Path, processes: int, folder: Path) -> subprocess.CompletedProcess:
    settings = {"PROFILE": "smoke", "ARTIFACTS_DIR": str(folder), "DATA_DIR": str(folder / "data"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                           str(script)], env=os.environ | settings, capture_output=True, text=True, timeout=400)


@pytest.fixture(scope="module")
def pair(script, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("pair")
    result = torchrun(script, 2, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return {"folder": folder, "output": result.stdout, "metrics": json.loads((folder / "metrics.json").read_text())}


def last_state(folder: Path, stage: str) -> dict:
    states = [json.loads(path.read_text()) for path in (folder / "checkpoints").glob(f"{stage}-*/checkpoint-*/trainer_state.json")]
    return max(states, key=lambda state: state["global_step"])


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_two_processes_take_the_same_steps(smoke, pair, stage):
    one, two = (last_state(run["folder"], stage) for run in (smoke, pair))
    assert one["global_step"] == two["global_step"] == two["max_steps"]


def test_two_processes_reach_the_same_score(smoke, pair):
    one, two = (run["metrics"]["pretrain"]["test_bpc"] for run in (smoke, pair))
    assert two == pytest.approx(one, abs=0.02)


def test_the_first_process_alone_prints_and_writes(smoke, pair):
    assert "батч 8 = 4 за раз × накопление 1 × процессов 2" in pair["output"]
    assert pair["output"].count("Произведений:") == pair["output"].count("4. Токенизатор:") == 1

    def written(run):
        return {path.relative_to(run["folder"]).as_posix() for name in ("figures", "tokenizer", "pretrain", "sft")
                for path in (run["folder"] / name).iterdir()}
    assert written(pair) == written(smoke)
    assert len(list((pair["folder"] / "checkpoints").iterdir())) == 3


def test_a_batch_that_does_not_divide_is_refused_and_ends_all(script, tmp_path):
    result = torchrun(script, 3, tmp_path)
    assert result.returncode != 0 and "Батч 8 не делится на процессы, их 3" in result.stderr
    assert not (tmp_path / "checkpoints").exists()


def test_share_of_the_batch(nb):
    for processes in (1, 2, 4, 8):
        per_device, accumulation = nb["fit_batch"](64, 70.0, 2.3, 0.5, processes=processes)
        assert per_device * accumulation * processes == 64
    with pytest.raises(ValueError, match="nproc_per_node"):
        nb["fit_batch"](64, 70.0, 2.3, 0.5, processes=3)
