"""Two ways to test a notebook: its definitions in an empty namespace, and one whole smoke run in a temporary folder."""
import json
import os
import re
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
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


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def serve():
    """serve((status, body, declared length, seconds of silence), …) -> (URL, list of requests); the last answer repeats."""
    servers, wait = [], time.sleep

    def start(*answers):
        requests = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, length, silence = (*answers[min(len(requests), len(answers) - 1)], None, 0)[:4]
                requests.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                wait(silence)
                self.wfile.write(body)

            def log_message(self, *args):
                pass

            def handle(self):
                try:
                    super().handle()
                except OSError:
                    pass  # the client hung up

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/corpus.zip", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def write_archive(nb):
    """write_archive(folder, listed, stored) -> a zip of `stored` beside the list of `listed`; a key may be a ZipInfo."""
    def write(folder: Path, listed: dict[str, bytes], stored: dict) -> Path:
        lines = [f"{nb['git_blob_id'](data)}  corpus/{name}\n" for name, data in listed.items()]
        (folder / "blobs.txt").write_text("".join(lines), encoding="utf-8")
        with zipfile.ZipFile(folder / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in stored.items():
                archive.writestr(name if isinstance(name, zipfile.ZipInfo) else f"top/corpus/{name}", data)
        return folder / "corpus.zip"
    return write
