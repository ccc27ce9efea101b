"""Three ways to test a notebook: its definitions in an empty namespace, some of its sections, and one whole smoke run."""
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = Path(os.environ.get("NOTEBOOK", ROOT / "project.ipynb")).resolve()
REAL_CORPUS = ROOT.parent / "shared" / "corpus" / "RussianNovels-master.zip"
SETTINGS = ("PROFILE", "CORPUS", "SFT_MODEL", "SFT_DATASET", "DATA_DIR", "ARTIFACTS_DIR", "SEED", "EPOCHS", "DEVICE_BATCH")
for name in SETTINGS:
    os.environ.pop(name, None)  # the tests' own settings, not those of the shell
os.chdir(ROOT)
os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads sleep


def is_definition(cell) -> bool:
    return bool({"definitions", "parameters"} & set(cell.metadata.get("tags", [])))


def choose_cells(notebook, sections) -> nbformat.NotebookNode:
    """The notebook's code: every definition, and of the other cells those of the sections named by their numbers; None: all."""
    chosen, section = nbformat.v4.new_notebook(metadata=notebook.metadata), None
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = int(([section or 0] + re.findall(r"(?m)^## (\d+)\.", cell.source))[-1])
        elif sections is None or is_definition(cell) or section in sections:
            chosen.cells.append(nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata))
    return chosen


def start_sections(notebook, sections=None, folder: Path | None = None, cwd: Path = ROOT, script: str = "", **settings) -> subprocess.Popen:
    """The sections as a script in a process of its own, in the smoke profile unless told otherwise; `script` is run after them."""
    code = "\n".join(cell.source for cell in choose_cells(notebook, sections).cells) + "\n" + script
    environment = {"PROFILE": "smoke", "OMP_NUM_THREADS": "1"} | (
        {"ARTIFACTS_DIR": str(folder), "DATA_DIR": str(folder / "data")} if folder else {})
    process = subprocess.Popen([sys.executable, "-c", code], stdout=(output := tempfile.TemporaryFile("w+")), cwd=cwd,
                               stderr=(errors := tempfile.TemporaryFile("w+")),
                               env=os.environ | environment | {name: str(value) for name, value in settings.items()})
    process.files = output, errors  # not pipes: nobody reads them while the process runs
    return process


def finish(process: subprocess.Popen, timeout: int = 400) -> subprocess.CompletedProcess:
    """Waits for a started process; its output and errors as texts."""
    process.wait(timeout)
    texts = [file.seek(0) or file.read() for file in process.files]
    return subprocess.CompletedProcess([], process.returncode, *texts)


def run_sections(*arguments, **settings) -> subprocess.CompletedProcess:
    return finish(start_sections(*arguments, **settings))


def run_forked(notebook, nb: dict, sections, folder: Path, cwd: Path = ROOT, script: str = "", then: str = "",
               **settings) -> subprocess.CompletedProcess:
    """Sections in a fork that has the definitions already, seconds faster; `script` is run before them and `then` after."""
    log = folder.with_name(folder.name + ".log")
    child = os.fork()
    if child == 0:
        code = 1
        with open(log, "w") as file:
            sys.stdout = file
            try:
                os.chdir(cwd)
                os.environ |= {"PROFILE": "smoke", "ARTIFACTS_DIR": str(folder), "DATA_DIR": str(folder / "data")} | {
                    name: str(value) for name, value in settings.items()}
                namespace = dict(nb)
                vars(sys.modules["__main__"]).update(nb)  # where a pool of processes looks its function up
                exec(script, namespace)
                for cell in choose_cells(notebook, sections).cells:
                    if not is_definition(cell) or "parameters" in cell.metadata["tags"]:
                        exec(cell.source, namespace)
                exec(then, namespace)
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=file)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return subprocess.CompletedProcess([], os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8"), "")


def run_whole(notebook, folder: Path, **settings) -> dict:
    """One run of the whole notebook as a notebook: its folder, metrics and executed cells."""
    run = choose_cells(notebook, None)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ({"PROFILE": "smoke", "ARTIFACTS_DIR": folder, "DATA_DIR": folder / "data"} | settings).items():
            patch.setenv(name, str(value))
        NotebookClient(run, timeout=600, kernel_name="python3", coalesce_streams=True).execute(cwd=str(ROOT))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {"folder": folder, "metrics": metrics, "cells": run.cells}


@pytest.fixture(scope="session")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="session")
def nb(notebook) -> dict:
    """The namespace left by the cells tagged `definitions` and `parameters`."""
    namespace: dict = {}
    for cell in notebook.cells:
        if is_definition(cell):
            exec(cell.source, namespace)
    return namespace


@pytest.fixture(scope="session")
def smoke(notebook, tmp_path_factory) -> dict:
    """One whole run in the smoke profile; all sections of it are checked by several files."""
    return run_whole(notebook, tmp_path_factory.mktemp("smoke"))


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
        threading.Thread(target=servers[-1].serve_forever, args=(0.02,), daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/corpus.zip", requests

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def write_archive(nb):
    """write_archive(folder, listed, stored) -> a zip of `stored`, beside the list of `listed` unless that is None; a key may be a ZipInfo."""
    def write(folder: Path, listed: dict[str, bytes] | None, stored: dict) -> Path:
        if listed is not None:
            lines = [f"{nb['git_blob_id'](data)}  corpus/{name}\n" for name, data in listed.items()]
            (folder / "blobs.txt").write_text("".join(lines), encoding="utf-8")
        with zipfile.ZipFile(folder / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in stored.items():
                archive.writestr(name if isinstance(name, zipfile.ZipInfo) else f"top/corpus/{name}", data)
        return folder / "corpus.zip"
    return write
