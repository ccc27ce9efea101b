"""A local imitation of the hub and of the corpus host: the default names, from an empty cache, from a warm one, and with no server."""
import hashlib
import json
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import finish, run_sections, start_sections
from tokenizers import ByteLevelBPETokenizer
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

MODEL, DATASET, OTHER = "Qwen/Qwen2.5-0.5B", "d0rj/alpaca-cleaned-ru", "someone/other-model"
PINS = {MODEL: "060db6499f32faf8b98477b0a26969ef7d8b9987", DATASET: "32f1044368aca7d07660d459521ac97d80d9b89e", OTHER: "f" * 40}
PARQUET = "data/train-00000-of-00001-c503683bee003a5c.parquet"


def write_model(folder: Path) -> None:
    """A tiny untrained Qwen2 with a byte-level tokenizer of Qwen's special tokens."""
    spoken = ByteLevelBPETokenizer()
    spoken.train([str(path) for path in Path("data/sample/corpus").iterdir()], vocab_size=700, show_progress=False)
    spoken.save_model(str(folder))
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=["<|im_start|>", "<|im_end|>"], pad_token="<|endoftext|>",
                                               eos_token="<|endoftext|>", unk_token="<|endoftext|>")
    tokenizer.save_pretrained(folder)
    Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
                                 num_key_value_heads=1, tie_word_embeddings=True, max_position_embeddings=2048,
                                 eos_token_id=tokenizer.eos_token_id, bos_token_id=None)).save_pretrained(folder)


class Hub:
    """Repositories as folders under `root`, each with one commit; `requests` lists what was asked."""
    def __init__(self, root: Path):
        self.root, self.requests = root, []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.requests.append(self.path)
                status, headers, body = hub.answer(self.path.partition("?")[0])
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            do_HEAD = do_GET

            def log_message(self, *args):
                pass
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, path: str) -> tuple[int, dict, bytes]:
        if path == "/corpus.zip":
            return 200, {}, (self.root / "corpus.zip").read_bytes()
        api = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/(revision|tree)/(\w+)", path)
        if api and api[1] in PINS and api[3] in (PINS[api[1]], *(["main"] if api[1] == OTHER else [])):
            files = [{"type": "file", "path": path.relative_to(self.root / api[1]).as_posix(), "size": path.stat().st_size,
                      "oid": hashlib.sha1(path.read_bytes()).hexdigest()} for path in (self.root / api[1]).rglob("*") if path.is_file()]
            info = {"id": api[1], "sha": PINS[api[1]], "siblings": [{"rfilename": file["path"]} for file in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(files if api[2] == "tree" else info).encode()
        file = re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        if file and (self.root / file[1] / file[3]).is_file() and file[2] == PINS[file[1]]:
            data = (self.root / file[1] / file[3]).read_bytes()
            return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": file[2]}, data
        return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def hub(nb, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name in (MODEL, OTHER):
        (root / name).mkdir(parents=True)
        write_model(root / name)
    (root / DATASET / "data").mkdir(parents=True)
    rows = nb["load_dataset"]("json", data_files="data/sample/instructions.jsonl", split="train")
    rows.select_columns(["input", "instruction", "output"]).to_parquet(str(root / DATASET / PARQUET))
    with zipfile.ZipFile(root / "corpus.zip", "w") as archive:  # the sample's works, one of which has no suffix
        for path in Path("data/sample/corpus").iterdir():
            archive.write(path, f"texts/{path.name.removesuffix('.txt')}.txt")
    hub = Hub(root)
    yield hub
    hub.close()


def settings_for(hub: Hub, folder: Path, **more) -> dict:
    return {"HF_ENDPOINT": hub.url, "HF_HOME": folder / "cache", "HF_HUB_OFFLINE": "0", "NO_PROXY": "127.0.0.1", "SFT_MODEL": MODEL,
            "SFT_DATASET": DATASET, "CORPUS": f"{hub.url}/corpus.zip"} | more


@pytest.fixture(scope="module")
def alone(notebook, hub, tmp_path_factory):
    """A process with an empty cache where no server listens; it waits while other tests run."""
    folder = tmp_path_factory.mktemp("alone")
    settings = settings_for(hub, folder, HF_ENDPOINT="http://127.0.0.1:9", SFT_DATASET="data/sample/instructions.jsonl")
    return start_sections(notebook, [0], folder / "out", **settings)


@pytest.fixture(scope="module")
def cold(notebook, hub, alone, tmp_path_factory) -> dict:
    """The whole smoke profile with the default names of the second stage, from an empty cache."""
    folder = tmp_path_factory.mktemp("cold")
    run = run_sections(notebook, None, folder / "out", **settings_for(hub, folder))
    assert run.returncode == 0, run.stderr[-3000:]
    return {"folder": folder, "metrics": json.loads((folder / "out" / "metrics.json").read_text()), "asked": list(hub.requests),
            "output": run.stdout}


def test_default_names_are_fetched_at_their_pinned_commits(cold):
    sft = cold["metrics"]["sft"]
    assert (sft["model"], sft["dataset"], sft["stand_in"]) == (MODEL, DATASET, False)
    for name in (MODEL, DATASET):
        asked = [path for path in cold["asked"] if name in path]
        assert any(f"/resolve/{PINS[name]}/" in path for path in asked) and all(PINS[name] in path for path in asked)


def test_nobody_is_told_about_the_run(cold):
    assert not [path for path in cold["asked"] if "telemetry" in path]


def test_the_same_seed_gives_the_same_model(smoke, cold):
    """Another process, another number of threads, the corpus from a zip without a list: the first stage ends alike."""
    one, two = smoke["metrics"], cold["metrics"]
    assert one["tokenizer"] == two["tokenizer"] and one["corpus"] == two["corpus"]
    for name in ("train_tokens", "test_bpc", "val_bpc"):
        assert one["pretrain"][name] == pytest.approx(two["pretrain"][name], rel=0.003), name


@pytest.fixture(scope="module")
def warm(notebook, hub, cold) -> dict:
    """Three processes side by side: two with a warm cache and an address where nobody listens, one with another hub model."""
    folder, nobody = cold["folder"], "http://127.0.0.1:9"
    started = {offline: start_sections(notebook, [0, 1, 9], folder / "out", **settings_for(
        hub, folder, HF_HUB_OFFLINE=offline, HF_ENDPOINT=nobody)) for offline in "10"}
    started["other"] = start_sections(notebook, [0], folder / "other", **settings_for(hub, folder, SFT_MODEL=OTHER))
    return {name: finish(process) for name, process in started.items()}


def test_another_hub_model_does_not_inherit_the_pin(warm):
    assert warm["other"].returncode == 0 and "other-model, qwen2" in warm["other"].stdout, warm["other"].stderr[-2000:]


@pytest.mark.parametrize("offline", ["1", "0"], ids=["HF_HUB_OFFLINE", "server-gone"])
def test_a_warm_cache_needs_no_network(hub, warm, offline):
    """The model, the rows and the corpus are all at hand: sections 0, 1 and 9 run."""
    assert warm[offline].returncode == 0, warm[offline].stderr[-2000:]
    assert "SFT_MODEL: Qwen2.5-0.5B" in warm[offline].stdout and hub.requests.count("/corpus.zip") == 1


def test_a_cold_cache_without_a_server_names_the_setting(alone):
    """The hub's client tries for about twenty seconds before it gives up."""
    run = finish(alone)
    message = run.stderr.strip().splitlines()[-1]
    assert run.returncode != 0 and f"SFT_MODEL={MODEL}" in message and "сеть" in message
    assert run.stderr.count("Traceback") == 1
