"""Faults provoked for real: broken servers and archives, killed processes, too little memory, damaged data."""
import json
import os
import resource
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TEXT = "Осень стояла теплая.\n".encode()
ROW = {"instruction": "Назови три реки.", "input": "", "output": "Волга, Обь, Лена."}
DEFINITIONS = """
import json, sys, nbformat
nb = {"__name__": "__main__"}
for cell in nbformat.read("project.ipynb", 4).cells:
    if {"definitions", "parameters"} & set(cell.metadata.get("tags", [])):
        exec(cell.source, nb)
"""


def run_python(code: str, *arguments, **options) -> subprocess.CompletedProcess:
    """A fresh process that has the notebook's definitions in `nb`."""
    return subprocess.run([sys.executable, "-c", DEFINITIONS + code, *map(str, arguments)], capture_output=True, text=True,
                          timeout=240, **options)


@pytest.mark.parametrize("answer, attempts", [((500, b""), 3), ((404, b""), 1), ((200, b"half", 4000), 3),
                                              ((200, b"late", None, 1.5), 3)], ids=["500", "404", "half", "stall"])
def test_bad_server_ends_in_one_message_without_a_file(nb, tmp_path, serve, no_waiting, capsys, answer, attempts):
    url, requests = serve(answer)
    with pytest.raises(ConnectionError, match="CORPUS"):
        nb["download"](url, tmp_path / "corpus.zip", attempts=3, timeout=(1, 0.3))
    assert len(requests) == attempts == capsys.readouterr().out.count("попытка") and not list(tmp_path.iterdir())


def test_html_page_instead_of_the_archive(nb, tmp_path, serve):
    with pytest.raises(ValueError, match="не zip-архив"):
        nb["load_corpus"](serve((200, b"<html>Sign in</html>"))[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_full_disk(tmp_path, serve):
    url, _ = serve((200, b"x" * 3_000_000))
    code = "nb['download'](sys.argv[1], nb['Path'](sys.argv[2]) / 'corpus.zip')"
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # noqa: E731
    result = run_python(code, url, tmp_path, preexec_fn=limit)
    assert result.returncode == 1 and "DATA_DIR" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_hostile_members_have_no_way_in(nb, tmp_path, monkeypatch, write_archive):
    monkeypatch.setitem(nb, "MAX_WORK_BYTES", 2**20)
    link = zipfile.ZipInfo("top/corpus/Link.txt")
    link.external_attr = 0o120777 << 16
    listed = {"Good.txt": TEXT, "Bomb.txt": TEXT, "Link.txt": TEXT, "Replaced.txt": TEXT}
    path = write_archive(tmp_path, listed, {
        "Good.txt": TEXT, "Bomb.txt": b"\0" * 2**26, link: b"/etc/passwd", "Replaced.txt": TEXT + b"!",
        "../../../climbed.txt": TEXT})
    before = {file for file in tmp_path.parent.rglob("*")}
    works, problems = nb["load_corpus"](str(path), tmp_path)
    assert list(works) == ["Good"] and problems == ["Bomb", "Link", "Replaced"]
    assert {file for file in tmp_path.parent.rglob("*")} == before


def test_truncated_and_empty_archives_are_named(nb, tmp_path, write_archive):
    path = write_archive(tmp_path, {"A.txt": TEXT, "B.txt": TEXT * 9}, {"A.txt": TEXT, "B.txt": TEXT * 9})
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="обрезан"):
        nb["load_corpus"](str(path), tmp_path)
    damaged = bytearray(whole)
    damaged[50:60] = b"\xff" * 10
    path.write_bytes(damaged)
    assert nb["load_corpus"](str(path), tmp_path)[1] == ["A"]
    with pytest.raises(ValueError, match="A, B"):
        nb["load_corpus"](str(write_archive(tmp_path, {"A.txt": TEXT, "B.txt": TEXT}, {"C.txt": TEXT})), tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere.zip"):
        nb["load_corpus"](str(tmp_path / "nowhere.zip"), tmp_path)


PRETRAIN = """
works, _ = nb["load_corpus"]("data/sample", nb["Path"]("data"))
texts = [nb["clean_work"](raw) for raw in works.values()]
tokenizer = nb["train_tokenizer"](texts, 600)
cfg = nb["replace"](nb["make_config"]("smoke", 3, seed=1, data_dir="data", artifacts_dir=sys.argv[1]), num_hidden_layers=1)
nb["transformers"].set_seed(1)
arguments = (cfg, nb["inspect_hardware"](), tokenizer, nb["tokenize_texts"](texts[:8], tokenizer),
             nb["pack_texts"](texts[-1:], tokenizer, 128), cfg.batch_size, [Reporter()])
report(nb["pretrain"](nb["build_model"](cfg, tokenizer), *arguments))
"""
SFT = """
cfg = nb["replace"](nb["make_config"]("smoke", seed=1, data_dir="data", artifacts_dir=sys.argv[1]), sft_epochs=3)
nb["transformers"].set_seed(1)
model, tokenizer = nb["load_chat_model"](sys.argv[2])
rows = nb["load_rows"]("data/sample/instructions.jsonl")
dialogues = nb["split_rows"](rows, 5, 1).map(nb["to_dialogue"], remove_columns=rows.column_names)
trainer, _ = nb["sft_trainer"](model, cfg, nb["inspect_hardware"](), tokenizer, dialogues, 8)
trainer.add_callback(Reporter())
report(nb["resume"](trainer))
"""
REPORTER = """
class Reporter(nb["TrainerCallback"]):
    def on_step_end(self, args, state, control, **kwargs):
        print(f"step {state.global_step}", flush=True)

def report(trainer):
    print("losses", json.dumps(nb["history"](trainer, "eval_loss")), flush=True)
"""


def run_stage(code: str, *arguments, kill_at: int | None = None) -> tuple[list[int], list[float]]:
    """(steps that were done, validation losses) of a stage in its own process, killed at step `kill_at`."""
    with subprocess.Popen([sys.executable, "-c", DEFINITIONS + REPORTER + code, *map(str, arguments)], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        steps, losses = [], []
        for line in process.stdout:
            if line.startswith("step "):
                steps.append(int(line.split()[1]))
                if steps[-1] == kill_at:
                    process.send_signal(signal.SIGKILL)
            elif line.startswith("losses "):
                losses = json.loads(line.removeprefix("losses "))
    assert process.returncode == (-signal.SIGKILL if kill_at else 0)
    return steps, losses


@pytest.mark.parametrize("stage", ["pretrain", "sft"])
def test_killed_run_does_the_remaining_steps_and_ends_alike(stage, smoke, tmp_path):
    code, rest = {"pretrain": (PRETRAIN, []), "sft": (SFT, [smoke["folder"] / "pretrain"])}[stage]
    steps, losses = run_stage(code, tmp_path / "whole", *rest)
    epoch = len(steps) // 3
    run_stage(code, tmp_path / "killed", *rest, kill_at=2 * epoch + 1)
    (folder,) = (tmp_path / "killed" / "checkpoints").iterdir()
    state = folder / f"checkpoint-{2 * epoch}" / "trainer_state.json"
    state.write_text(state.read_text()[:100])  # as if the kill had cut the last checkpoint short
    resumed_steps, resumed_losses = run_stage(code, tmp_path / "killed", *rest)
    assert resumed_steps == list(range(epoch + 1, 3 * epoch + 1))
    assert resumed_losses[0] == losses[0] and resumed_losses[-1] == pytest.approx(losses[-1], abs=0.02)


def test_out_of_memory_names_the_knob(tmp_path):
    limit = """
import os, resource
size = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (size + 500 * 2**20,) * 2)
"""
    code = PRETRAIN.replace("num_hidden_layers=1", "num_hidden_layers=1, intermediate_size=40_000")
    result = run_python(REPORTER + code.replace("report(", limit + "report("), tmp_path)
    assert result.returncode == 1 and "MemoryError" in result.stderr and "DEVICE_BATCH=4" in result.stderr


def test_full_profile_without_a_gpu_is_refused_with_an_estimate(nb, tmp_path):
    cfg = nb["make_config"]("full", seed=1, data_dir="data", artifacts_dir=str(tmp_path))
    cpu = nb["Hardware"]("CPU", False, "fp32", 24.0, None, False)
    with pytest.raises(RuntimeError, match=r"около [\d,]+ ч.*INSIST=1"):
        nb["check_resources"](nb["replace"](cfg, epochs=1), cpu, False)
    nb["check_resources"](cfg, cpu, True)
    nb["check_resources"](nb["make_config"]("smoke", seed=1, data_dir="data", artifacts_dir=str(tmp_path)), cpu, False)


def test_little_disk_space_is_refused_before_the_work(nb, tmp_path, capsys):
    cfg = nb["make_config"]("full", seed=1, data_dir="data", artifacts_dir=str(tmp_path))
    gpu = nb["Hardware"]("H100", True, "bf16", 79.0, None, True)
    with pytest.raises(OSError, match="ARTIFACTS_DIR"):
        nb["check_resources"](nb["replace"](cfg, hidden_size=10**6), gpu, False)
    assert "ГиБ на диске" in capsys.readouterr().out


def test_checkpoints_are_bounded(smoke):
    stages = {}
    for folder in (smoke["folder"] / "checkpoints").iterdir():
        stages[folder.name.split("-")[0]] = len(list(folder.glob("checkpoint-*")))
    assert stages.keys() == {"teacher", "pretrain", "sft"} and max(stages.values()) <= 2


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_damaged_rows_are_named(nb, tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 or {not json\n")
    with pytest.raises(ValueError, match="SFT_DATASET"):
        nb["load_rows"](str(tmp_path / name))


def test_other_columns_are_listed(nb, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": "b"}))
    with pytest.raises(ValueError, match="'answer'"):
        nb["load_rows"](str(path))


def test_ten_rows_are_enough_and_two_are_not(nb):
    rows = nb["Dataset"].from_list([ROW | {"instruction": f"Вопрос {n}"} for n in range(10)])
    parts = nb["split_rows"](rows, 500, seed=1)
    assert all(len(part) for part in parts.values()) and sum(map(len, parts.values())) == 10
    with pytest.raises(ValueError, match="мало"):
        nb["split_rows"](rows.select(range(2)), 500, seed=1)


def test_repeated_rows_are_dropped(nb):
    usable, faults = nb["drop_faulty"](nb["Dataset"].from_list([ROW, ROW, ROW | {"output": "Нева, Ока, Дон."}]))
    assert len(usable) == 2 and faults == {"повтор": 1}


def test_unreachable_hub_names_the_setting_at_once(nb):
    for setting, source, kind in (("SFT_MODEL", "Qwen/Qwen2.5-0.5B", "model"), ("SFT_DATASET", "d0rj/alpaca-cleaned-ru", "dataset")):
        with pytest.raises(ConnectionError, match=f"{setting}.*на хабе"):
            nb["check_source"](setting, source, "main", kind)
    with pytest.raises(FileNotFoundError, match="SFT_DATASET.*jsonl"):
        nb["check_source"]("SFT_DATASET", "folder/rows.jsonl", "main", "dataset")
    nb["check_source"]("SFT_DATASET", "data/sample/instructions.jsonl", "main", "dataset")


def test_nothing_executes_code_from_the_data(notebook):
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert "trust_remote_code" not in code and "pickle" not in code and "weights_only=False" not in code
    assert code.count("use_safetensors=True") == code.count("AutoModelForCausalLM.from_pretrained(")


def test_saved_weights_are_safetensors(smoke):
    for stage in ("pretrain", "sft"):
        assert (smoke["folder"] / stage / "model.safetensors").exists()
        assert not list((smoke["folder"] / stage).glob("*.bin"))


def test_tables_show_html_from_the_data_as_text(nb, monkeypatch):
    shown = []
    monkeypatch.setitem(nb, "display", lambda page: shown.append(page.data))
    monkeypatch.setitem(nb, "get_ipython", lambda: "a notebook")
    nb["show"](nb["pd"].DataFrame({"<b>": ["<script>alert(1)</script>", "a\nb"]}), "<i>caption</i>")
    assert "<script" not in shown[0] and "<i>" not in shown[0] and "&lt;script" in shown[0]


def test_outputs_hold_no_path_of_this_machine(smoke):
    outputs = json.dumps([cell.outputs for cell in smoke["cells"]], ensure_ascii=False)
    for path in (smoke["folder"], Path.cwd(), Path.home() / ".cache", sys.prefix):
        assert str(path) not in outputs
    assert os.environ.get("HF_TOKEN", "no token") not in outputs


def test_same_seed_gives_the_same_metrics(smoke, smoke_again):
    def without_time(value):
        if isinstance(value, dict):
            return {key: without_time(part) for key, part in value.items()
                    if key not in ("wall_s", "tokens_per_s", "tokens_per_s_last_epoch", "train_s")}
        return value
    assert without_time(smoke["metrics"]) == without_time(smoke_again["metrics"])
