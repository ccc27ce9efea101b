"""Two ways to test a notebook: its definitions in an empty namespace, and one whole smoke run in a temporary folder."""
import json
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
REAL_CORPUS = ROOT.parent / "shared" / "corpus" / "RussianNovels-master.zip"
os.chdir(ROOT)
os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"}


@pytest.fixture(scope="session")
def notebook():
    return nbformat.read(ROOT / "project.ipynb", as_version=4)


@pytest.fixture(scope="session")
def nb(notebook) -> dict:
    """The namespace left by the cells tagged `definitions` and `parameters`."""
    namespace: dict = {}
    for cell in notebook.cells:
        if {"definitions", "parameters"} & set(cell.metadata.get("tags", [])):
            exec(cell.source, namespace)
    return namespace


def run_smoke(notebook, folder: Path) -> dict:
    """One run of the whole notebook in the smoke profile: its folder, metrics and executed cells."""
    run = nbformat.from_dict(notebook)
    for cell in run.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    settings = {"PROFILE": "smoke", "ARTIFACTS_DIR": str(folder), "DATA_DIR": str(folder / "data")}
    with pytest.MonkeyPatch.context() as patch:
        for cell in run.cells:
            if "parameters" in cell.metadata.get("tags", []):
                for name in re.findall(r'environ\.get\("(\w+)"', cell.source):
                    patch.delenv(name, raising=False)
        for name, value in settings.items():
            patch.setenv(name, value)
        NotebookClient(run, timeout=600, kernel_name="python3", coalesce_streams=True).execute(cwd=str(ROOT))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"folder": folder, "metrics": metrics, "cells": [c for c in run.cells if c.cell_type == "code"]}


@pytest.fixture(scope="session")
def smoke(notebook, tmp_path_factory) -> dict:
    return run_smoke(notebook, tmp_path_factory.mktemp("smoke"))


@pytest.fixture(scope="session")
def smoke_again(notebook, tmp_path_factory) -> dict:
    return run_smoke(notebook, tmp_path_factory.mktemp("smoke_again"))


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    if not REAL_CORPUS.exists():
        pytest.skip(f"нет архива настоящего корпуса: {REAL_CORPUS.name}")
    return REAL_CORPUS


@pytest.fixture(scope="session")
def sample_texts(nb) -> list[str]:
    works, _ = nb["load_corpus"]("data/sample", Path("data"))
    return [nb["clean_work"](raw) for raw in works.values()]


@pytest.fixture(scope="session")
def tokenizer(nb, sample_texts):
    return nb["train_tokenizer"](sample_texts, 600)


@pytest.fixture(scope="session")
def tiny(nb, tokenizer):
    """An untrained model of the smoke profile's shape."""
    cfg = nb["make_config"]("smoke", seed=1, data_dir="data")
    nb["torch"].manual_seed(1)
    return nb["build_model"](cfg, tokenizer)
