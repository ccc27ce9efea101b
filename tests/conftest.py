"""Ways to test a notebook: its definitions in an empty namespace, some of its sections in a fork, and one whole smoke run."""

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
from subprocess import CompletedProcess
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = Path(os.environ.get("NOTEBOOK", ROOT / "project.ipynb")).resolve()
REAL_CORPUS = ROOT.parent / "shared" / "corpus" / "RussianNovels-master.zip"
SETTINGS = "PROFILE RECIPE CORPUS SFT_MODEL SFT_DATASET DATA_DIR ARTIFACTS_DIR SEED EPOCHS STAGES DEVICE_BATCH".split()
for setting in SETTINGS:
    os.environ.pop(setting, None)  # the tests' own settings, not those of the shell
os.chdir(ROOT)
os.environ |= {"HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg", "OMP_WAIT_POLICY": "PASSIVE"}  # waiting threads sleep
os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "PYTHONHASHSEED": "0"}


def tagged(cell, *tags: str) -> bool:
    return bool({*tags} & {*cell.metadata.get("tags", [])})


def choose_cells(notebook, sections=None) -> list:
    """The code cells: every definition, and of the others those of the sections named by their numbers; None: all."""
    chosen, section = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            section = int(([section] + re.findall(r"(?m)^## (\d+)\.", cell.source))[-1])
        elif sections is None or tagged(cell, "definitions", "parameters") or section in sections:
            chosen.append(cell)
    return chosen


def smoke_settings(folder: Path, settings: dict) -> dict[str, str]:
    chosen = {"PROFILE": "smoke", "ARTIFACTS_DIR": folder, "DATA_DIR": folder / "data"} | settings
    return {name: str(value) for name, value in chosen.items()}


def run_forked(
    notebook, nb: dict, sections, folder: Path, cwd=ROOT, script="", then="", **settings
) -> CompletedProcess:
    """Sections in a fork that has the definitions already; `script` is run before them and `then` after."""
    log = folder.with_name(folder.name + ".log")
    child = os.fork()
    if child == 0:
        code = 1
        with open(log, "w", encoding="utf-8") as file:
            sys.stdout = file
            try:
                os.chdir(cwd)
                os.environ |= smoke_settings(folder, settings)
                namespace = nb  # the fork's own
                namespace["torch"].set_num_threads(1)  # a fork has no pool of threads
                for cell in choose_cells(notebook, sections):
                    if tagged(cell, "parameters"):
                        exec(cell.source, namespace)
                exec(script, namespace)
                for cell in choose_cells(notebook, sections):
                    if not tagged(cell, "definitions", "parameters"):
                        exec(cell.source, namespace)
                exec(then, namespace)
                code = 0
            except BaseException as error:
                print(f"{type(error).__name__}: {error}", file=file)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    return CompletedProcess([], os.waitstatus_to_exitcode(status), log.read_text(encoding="utf-8"), "")


def start_sections(notebook, sections, folder: Path, script="", **settings) -> subprocess.Popen:
    """The sections as a script in a process of its own; `script` is run after them; to be waited for by `finish`."""
    code = "\n".join(cell.source for cell in choose_cells(notebook, sections)) + "\n" + script
    output, errors = (tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2))
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | smoke_settings(folder, settings)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=errors, cwd=ROOT, env=environment)
    process.files = output, errors  # not pipes: nobody reads them while the process runs
    return process


def finish(process: subprocess.Popen, timeout: int = 400) -> CompletedProcess:
    """Waits for a started process; its output and errors as texts."""
    process.wait(timeout)
    texts = [file.seek(0) or file.read() for file in process.files]
    return CompletedProcess([], process.returncode, *texts)


@pytest.fixture(scope="session")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture(scope="session")
def nb(notebook) -> dict:
    """The namespace left by the cells tagged `definitions` and `parameters`."""
    sys.modules["notebook"] = module = ModuleType("notebook")  # where pools of processes look functions up
    for cell in choose_cells(notebook, ()):
        exec(cell.source, vars(module))
    return vars(module)


TEXTS = """
with open({path!r}, "w", encoding="utf-8") as file:
    json.dump({{"train": train_texts, "validation": validation_texts, "test": test_texts}}, file)
"""


@pytest.fixture(scope="session")
def smoke(notebook, tmp_path_factory) -> dict:
    """One whole smoke run as a notebook: its folder, metrics, executed cells, trainings (see spy.py) and texts by part."""
    base = tmp_path_factory.mktemp("whole")
    folder, code = base / "smoke", choose_cells(notebook)
    imports = next(i for i, cell in enumerate(code) if "import SFTConfig" in cell.source)
    watch = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import spy; spy.watch({str(base)!r})"
    run = nbformat.v4.new_notebook(metadata=notebook.metadata)
    sources = [cell.source for cell in code]
    sources = [*sources[: imports + 1], watch, *sources[imports + 1 :], TEXTS.format(path=str(base / "texts.json"))]
    run.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in smoke_settings(folder, {}).items():
            patch.setenv(name, value)
        NotebookClient(run, timeout=600, kernel_name="python3", coalesce_streams=True).execute(cwd=str(ROOT))
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    lines = (base / "trainings-0.jsonl").read_text(encoding="utf-8").splitlines()
    texts = json.loads((base / "texts.json").read_text(encoding="utf-8"))
    trainings = [json.loads(line) for line in lines]
    return {"folder": folder, "metrics": metrics, "cells": run.cells, "trainings": trainings, "texts": texts}


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    if not REAL_CORPUS.exists():
        pytest.skip(f"нет архива настоящего корпуса: {REAL_CORPUS.name}")
    return REAL_CORPUS


@pytest.fixture(scope="session")
def sample_texts(nb) -> list[str]:
    works, *_ = nb["load_corpus"]("data/sample", Path("data"))
    return [nb["clean_work"](raw) for raw in works.values()]


@pytest.fixture(scope="session")
def tokenizer(nb, sample_texts):
    return nb["train_tokenizer"](sample_texts, 600)


@pytest.fixture(scope="session")
def configure(nb):
    """configure(cuda, SETTING=value, …) -> the configuration that section 0 makes of the defaults and these settings."""
    return lambda cuda=False, **settings: nb["make_config"]({name: nb[name] for name in SETTINGS} | settings, cuda)


@pytest.fixture(scope="session")
def smoke_cfg(configure):
    """The smoke profile as section 0 sets it on a CPU."""
    cfg = configure()
    cfg.precision, cfg.compile, cfg.blocks_at_once, cfg.dialogues_at_once = "fp32", False, 8, 8
    return cfg


@pytest.fixture(scope="session")
def tiny(nb, smoke_cfg, tokenizer):
    """An untrained model of the smoke profile's shape."""
    nb["torch"].manual_seed(1)
    return nb["build_model"](smoke_cfg, tokenizer)


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
    """write_archive(folder, listed, stored) -> a zip of `stored`, beside the list of `listed` unless it is None; a key may be a ZipInfo."""

    def write(folder: Path, listed: dict[str, bytes] | None, stored: dict) -> Path:
        if listed is not None:
            lines = [f"{nb['git_blob_id'](data)}  corpus/{name}\n" for name, data in listed.items()]
            (folder / "blobs.txt").write_text("".join(lines), encoding="utf-8")
        with zipfile.ZipFile(folder / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in stored.items():
                archive.writestr(name if isinstance(name, zipfile.ZipInfo) else f"top/corpus/{name}", data)
        return folder / "corpus.zip"

    return write
