"""What section 0 opens for stage two: files of rows, folders of models, and the hub (a local imitation of it)."""

import hashlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import finish, run_forked, start_sections
from safetensors.torch import load_file
from tokenizers import ByteLevelBPETokenizer
from transformers import BertConfig, BertForMaskedLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

ROWS = [{"input": "", "instruction": f"Что такое вещь {n}?", "output": f"Вещь {n} — предмет."} for n in range(20)]

# Files of rows


def write(path: Path, rows: list, encoding="utf-8") -> Path:
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(encoding))
    return path


def renamed(*names) -> list[dict]:
    return [dict(zip(names, row.values())) for row in ROWS]


@pytest.mark.parametrize(
    "name", ["rows.jsonl", "ROWS.JSONL", "a[1]*?.jsonl", "rows.json", "array.json", "rows.Parquet"]
)
def test_files_are_read_whatever_their_names(nb, tmp_path, name):
    path = tmp_path / name
    if "arquet" in name:
        nb["pd"].DataFrame(ROWS).to_parquet(path)
    elif name == "array.json":
        path.write_text(json.dumps(ROWS, indent=1), encoding="utf-8-sig")
    else:
        write(path, ROWS)
    assert nb["open_rows"](str(path), 50).to_list() == ROWS


@pytest.mark.parametrize(
    "rows, expected",
    [
        (renamed("Input", " INSTRUCTION", "Output "), ROWS),
        ([{"instruction": row["instruction"], "output": row["output"], "id": 7} for row in ROWS], ROWS),
        ([row | {"input": None} for row in ROWS], ROWS),
        ([row | {"output": f"\n{row['output']} "} for row in ROWS], ROWS),
        ([ROWS[0] | {"output": " "}, ROWS[0] | {"instruction": None}, *ROWS], ROWS),
        ([{"text": "лишнее"}, *ROWS], ROWS),
        (
            [row | {"output": "Раз.\u2028Два.\x85Три."} for row in ROWS],
            [row | {"output": "Раз.\u2028Два.\x85Три."} for row in ROWS],
        ),
    ],
    ids=["capitals", "no-input", "null-input", "spaces", "empty", "other-keys", "line-signs"],
)
def test_rows_are_what_the_file_means(nb, tmp_path, rows, expected):
    assert nb["open_rows"](str(write(tmp_path / "rows.jsonl", rows)), 60).to_list() == expected


def test_a_row_may_have_eight_bytes_a_token(nb, tmp_path):
    long = [{"input": "", "instruction": "я" * 100, "output": "я" * n} for n in (139, 140, 141)]
    rows = nb["open_rows"](str(write(tmp_path / "rows.jsonl", ROWS + long)), 60)
    assert [len(text) for text in rows["output"][-2:]] == [139, 140] and len(rows) == 22


def test_nulls_of_many_megabytes_do_not_hide_the_texts(nb, tmp_path):
    head = [{"instruction": f"Вопрос {n}", "input": None, "output": "слово " * 5000} for n in range(500)]
    tail = [row | {"input": "Кратко."} for row in ROWS]
    assert nb["open_rows"](str(write(tmp_path / "rows.jsonl", head + tail)), 60).to_list() == tail


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("none.jsonl", None, ["нет такого файла"]),
        ("no/such/none", None, ["нет такого файла"]),
        ("cp1251.jsonl", ("cp1251", ROWS), ["UTF-8"]),
        ("numbers.jsonl", [row | {"output": n} for n, row in enumerate(ROWS)], ["не только тексты"]),
        ("mixed.jsonl", ROWS + [ROWS[0] | {"output": 7}], ["не только тексты"]),
        ("messages.jsonl", [{"messages": [{"role": "user", "content": "да"}]}] * 20, ["messages", "instruction"]),
        ("columns.jsonl", renamed("input", "question", "answer"), ["instruction и output", "хотя бы 10"]),
        ("few.jsonl", ROWS[:9] + ROWS[:9], ["9", "хотя бы 10"]),
        ("empty.jsonl", [row | {"output": " \n"} for row in ROWS], ["0", "хотя бы 10"]),
        ("nothing.jsonl", [], ["instruction"]),
        ("long.jsonl", [row | {"output": "слово " * 2000} for row in ROWS], ["хотя бы 10"]),
        ("cut.jsonl", b'{"instruction": "a", "outp', ["jsonl"]),
        ("rows.csv", b"question;answer\n", [".csv", ".jsonl"]),
        ("cut.parquet", b"PAR1 is not all", [".parquet"]),
    ],
)
def test_rows_that_cannot_train_are_one_sentence(notebook, nb, tmp_path, name, content, words):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        write(path, *((content[1], content[0]) if isinstance(content, tuple) else (content,)))
    run = run_forked(notebook, nb, [0], tmp_path / "out", SFT_DATASET=path)
    message = run.stdout.strip().splitlines()[-1]
    assert run.returncode and message.startswith(f"ValueError: SFT_DATASET={path}: ") and message.endswith("."), (
        run.stdout
    )
    assert all(word in message for word in words) and not re.search(r"\.\s", message.removesuffix("."))


def test_ten_questions_are_enough(notebook, nb, tmp_path):
    rows = write(tmp_path / "rows.jsonl", [row | {"output": output} for row in ROWS[:10] for output in ("Да.", "Нет.")])
    run = run_forked(notebook, nb, [0], tmp_path / "out", SFT_DATASET=rows)
    assert run.returncode == 0 and "Пригодных строк: 20, разных вопросов: 10\n" in run.stdout, run.stdout


# Folders of models


def write_model(folder: Path, context=2048) -> Path:
    """A tiny untrained Qwen2 with a byte-level tokenizer of Qwen's special tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    spoken = ByteLevelBPETokenizer()
    spoken.train([str(path) for path in Path("data/sample/corpus").iterdir()], vocab_size=400, show_progress=False)
    spoken.save_model(str(folder))
    special = dict.fromkeys(("pad_token", "eos_token", "unk_token"), "<|endoftext|>")
    tokenizer = Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=["<|im_start|>", "<|im_end|>"], **special)
    tokenizer.save_pretrained(folder)
    sizes = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1
    )
    end = tokenizer.eos_token_id
    config = dict(vocab_size=len(tokenizer), max_position_embeddings=context, eos_token_id=end, bos_token_id=None)
    Qwen2ForCausalLM(Qwen2Config(**sizes, **config)).save_pretrained(folder)
    return folder


def spoil(folder: Path, how: str) -> Path:
    weights = folder / "model.safetensors"
    if how == "pickle":
        torch.save(load_file(weights), folder / "pytorch_model.bin")  # whole, but refused all the same
        weights.unlink()
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "no-tokenizer":
        for path in [*folder.glob("*token*"), *folder.glob("vocab*"), *folder.glob("merges*")]:
            path.unlink()
    elif how == "encoder":
        sizes = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=2048)
        BertForMaskedLM(BertConfig(**sizes)).save_pretrained(folder)
    elif how == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "how, words",
    [
        ("pickle", ["safetensors"]),
        ("cut", ["safetensors"]),
        ("no-tokenizer", ["токенизатор"]),
        ("encoder", ["BertForMaskedLM", "не продолжает"]),
        ("empty", ["config.json"]),
        ("443", ["контекст", "444"]),
        ("444", None),
    ],
)
def test_a_model_that_cannot_answer_is_one_sentence(notebook, nb, tmp_path, how, words):
    folder = spoil(write_model(tmp_path / "model", int(how) if how.isdigit() else 2048), how)
    run = run_forked(notebook, nb, [0], tmp_path / "out", SFT_MODEL=folder)
    message = run.stdout.strip().splitlines()[-1]
    assert (run.returncode == 0) == (words is None), run.stdout
    if words:
        assert message.startswith(f"ValueError: SFT_MODEL={folder}: ") and all(word in message for word in words), (
            message
        )


# The hub

MODEL, DATASET, OTHER = "Qwen/Qwen2.5-0.5B", "d0rj/alpaca-cleaned-ru", "someone/other-model"
PINS = {MODEL: "060db6499f32faf8b98477b0a26969ef7d8b9987", DATASET: "32f1044368aca7d07660d459521ac97d80d9b89e"}
MAIN = "e" * 40
NOBODY = "http://127.0.0.1:9"


class Hub:
    """Repositories as folders under `root`, with the commits listed and main; `requests` lists what was asked."""

    def __init__(self, root: Path, commits: dict[str, str]):
        self.root, self.commits, self.requests = root, commits, []
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
        api = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)/(revision|tree)/(\w+)", path)
        file = re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/(\w+)/(.+)", path)
        name, revision = (api[1], api[3]) if api else (file[1], file[2]) if file else ("", "")
        commit = MAIN if revision in ("main", MAIN) else revision
        if commit not in (MAIN, self.commits.get(name)):
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = self.root / name
        if api:
            files = [
                {"type": "file", "path": str(path.relative_to(folder)), "size": path.stat().st_size,
                 "oid": hashlib.sha1(path.read_bytes()).hexdigest()}
                for path in folder.rglob("*") if path.is_file()]  # fmt: skip
            info = {"id": name, "sha": commit, "siblings": [{"rfilename": file["path"]} for file in files]}
            return 200, {"Content-Type": "application/json"}, json.dumps(files if api[2] == "tree" else info).encode()
        if not (folder / file[3]).is_file():
            return 404, {"X-Error-Code": "EntryNotFound"}, b"{}"
        data = (folder / file[3]).read_bytes()
        return 200, {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit}, data


@pytest.fixture(scope="module")
def hubs(nb, tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    for name in (MODEL, OTHER):
        write_model(root / name)
        (root / name / "pytorch_model.bin").write_bytes(b"pickle")
    (root / DATASET / "data").mkdir(parents=True)
    nb["pd"].DataFrame(ROWS).to_parquet(root / DATASET / "data" / "train-00000-of-00001.parquet")
    hubs = {"pinned": Hub(root, PINS), "moved": Hub(root, {})}
    yield hubs
    for hub in hubs.values():
        hub.server.shutdown()
        hub.server.server_close()


TOLD = "print(json.dumps([stand_in, len(rows), model_name, data_name]))"


@pytest.fixture(scope="module")
def runs(notebook, hubs, tmp_path_factory) -> dict:
    """Sections 0 and 10 in processes of their own, two at a time: from empty caches, then from the filled ones."""
    folder = tmp_path_factory.mktemp("runs")

    def start(name, url, cache, sections=(0, 10), offline="0", script=TOLD, model=MODEL, data=DATASET):
        hub = {"HF_ENDPOINT": url, "HF_HOME": folder / cache, "HF_HUB_OFFLINE": offline, "NO_PROXY": "127.0.0.1"}
        return start_sections(
            notebook, sections, folder / name, script=script, SFT_MODEL=model, SFT_DATASET=data, **hub
        )

    alone = start("alone", NOBODY, "nothing", data="data/sample/instructions.jsonl")  # it waits most of its time
    finished = {}
    for pair in (
        {"cold": (hubs["pinned"].url, "warm"), "moved": (hubs["moved"].url, "main")},
        {"offline": (NOBODY, "warm", (0, 10), "1"), "moved-offline": (NOBODY, "main", (0, 10), "1")},
        {"other": (hubs["pinned"].url, "other", (0,), "0", "", OTHER)},
    ):
        started = {name: start(name, *settings) for name, settings in pair.items()}
        finished |= {name: finish(process) for name, process in started.items()}
    return finished | {"alone": finish(alone)}


@pytest.mark.parametrize("name", ["cold", "offline", "moved", "moved-offline"])
def test_the_default_names_are_opened_and_asked(runs, name):
    """With the hub, without it from the filled cache, and where the hub does not know the pinned commits."""
    run = runs[name]
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1]) == [False, 20, MODEL, DATASET]
    assert run.stdout.count("закреплённая версия не нашлась") == (2 if "moved" in name else 0)


def test_pinned_commits_are_asked_for_and_nothing_else(runs, hubs):
    asked = hubs["pinned"].requests
    for name, commit in PINS.items():
        of_it = [path for path in asked if f"/{name}/" in path]
        assert any("/resolve/" in path for path in of_it) and all(f"/{commit}" in path for path in of_it)
    assert runs["other"].returncode == 0 and any(f"{OTHER}/resolve/{MAIN}" in path for path in asked)
    assert not [
        path
        for hub in hubs.values()
        for path in hub.requests
        if "telemetry" in path or ".bin" in path.partition("?")[0]
    ]


def test_an_empty_cache_without_a_server_names_the_setting(runs):
    message = runs["alone"].stderr.strip().splitlines()[-1]
    assert runs["alone"].returncode and f"SFT_MODEL={MODEL}" in message and "сеть" in message
    assert runs["alone"].stderr.count("Traceback") == 1
