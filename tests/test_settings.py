"""Settings, the machine, and what section 0 opens: each fault is one sentence that names the setting."""
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import ROOT, run_forked

ROW = {"instruction": "Назови три реки.", "input": "", "output": "Волга, Обь, Лена."}


def last_line(run) -> str:
    assert run.returncode != 0, run.stdout
    return run.stdout.strip().splitlines()[-1]


def test_full_profile_has_the_sizes_of_the_brief(nb):
    cfg = nb["make_config"]("full")
    assert cfg.context_length == 512 and cfg.vocab_size == 3000 and 64 <= cfg.batch_size <= 128 and cfg.weight_decay > 0
    assert (cfg.sft_model, cfg.sft_dataset) == ("Qwen/Qwen2.5-0.5B", "d0rj/alpaca-cleaned-ru") and "0398a12" in cfg.corpus


def test_settings_override_the_profile_and_auto_does_not(nb):
    cfg = nb["make_config"]("smoke", corpus="x.zip", artifacts_dir="out", sft_model="auto", seed="7", epochs="3", device_batch="2", data_dir="")
    assert (cfg.corpus, cfg.artifacts_dir, cfg.sft_model, cfg.seed, cfg.epochs, cfg.device_batch, cfg.data_dir) == (
        "x.zip", Path("out"), "out/pretrain", 7, 3, 2, Path("data"))
    assert nb["make_config"]("smoke", sft_model="gpt").sft_model == "gpt" and nb["make_config"]("full", epochs="auto").epochs == nb["Config"]().epochs


@pytest.mark.parametrize("setting, value", [("EPOCHS", "-1"), ("EPOCHS", "abc"), ("EPOCHS", "0"), ("EPOCHS", "2.5"), ("DEVICE_BATCH", "-3"),
                                            ("DEVICE_BATCH", "7"), ("DEVICE_BATCH", "0"), ("SEED", "-1"), ("SEED", "x"), ("SEED", str(2**31))])
def test_numbers_are_checked(nb, setting, value):
    with pytest.raises(ValueError, match=rf"^{setting}={value}: .*auto\.$"):
        nb["make_config"]("smoke", **{setting.lower(): value})


def test_unknown_profile_is_named(nb):
    with pytest.raises(ValueError, match="PROFILE=huge.*smoke"):
        nb["make_config"]("huge")


@pytest.mark.parametrize("batch, share", [(64, 64), (8, 8)])
def test_the_batch_fits_and_stays_the_batch(nb, batch, share):
    """By hand: 0.85 * 15 GiB less 2.5 leave 10.25 for 42 sequences of 0.24, so 32; in fp16 each needs twice that, so 16."""
    def card(gib, precision="bf16"):
        return nb["Hardware"]("", True, precision, True, gib)
    at_once = nb["sequences_at_once"]
    assert at_once(64, 2.5, 0.24, card(11)) == 16  # all of the 11 GiB would hold 35
    assert at_once(64, 2.5, 0.24, card(15)) == 32 and at_once(64, 2.5, 0.24, card(15, "fp16")) == 16
    assert at_once(batch, 2.5, 0.24, card(75)) == share and at_once(64, 2.5, 0.24, card(75), limit=16) == 16
    assert at_once(96, 2.5, 0.24, card(15)) == 32 and at_once(64, 2.5, 0.24, card(1)) == 1  # too little: one, and torch tells
    assert at_once(batch, 100, 100, nb["Hardware"]("CPU", False, "fp32", False, float("inf"))) == share


def test_prompts_and_questions_stand_verbatim(nb):
    brief = ROOT.parent / "shared" / "brief-ru.md"
    if not brief.exists():
        pytest.skip("нет текста задания")
    assert (len(nb["TEST_PROMPTS"]), len(nb["QUESTIONS_RUS"])) == (10, 4)
    assert all(f'"{text}"' in brief.read_text(encoding="utf-8") for text in nb["TEST_PROMPTS"] + nb["QUESTIONS_RUS"])


def test_columns_are_printed_with_equal_decimals(nb):
    pd, none = nb["pd"], float("nan")
    printed = pd.DataFrame({"бит": [1.5, 2.25], "доля <pad>": [0.05, 0.5], "всего": [0.75, 1234.4], "знаков": [7, 12_345],
                            "есть": [True, False], "текст": ["a", None], "пусто": [1.5, none]}).apply(nb["format_column"])
    assert printed.to_dict("list") == {
        "бит": ["1.500", "2.250"], "доля <pad>": ["5.0%", "50.0%"], "всего": ["0.750", "1\u00a0234.400"],
        "знаков": ["7", "12\u00a0345"], "есть": ["да", "нет"], "текст": ["a", "–"], "пусто": ["1.500", "–"]}


def test_tables_show_html_from_the_data_as_text(notebook, nb, tmp_path):
    """In IPython: markup in cells, headers and captions is text, numbers stand right, lines of a text stay lines."""
    table = run_forked(notebook, nb, [], tmp_path / "out", script="""
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
InteractiveShell.instance()
with capture_output() as captured:
    show(pd.DataFrame({"<b>": ["<script>alert(1)</script>", "a\\nb"], "n": [1, 22]}), "<i>caption</i>")
print(captured.outputs[0].data["text/html"])
""").stdout
    assert "<script" not in table and "<i>" not in table and "&lt;script" in table and "a<br>b" in table and "class=" not in table
    assert '<td align="right" style="text-align: right">22</td>' in table


def test_a_card_that_torch_does_not_see_stops_section_0(notebook, nb, tmp_path):
    """nvidia-smi lists a card, the CPU build of torch does not know it: an error with what to install; hiding the card goes on."""
    if sys.platform == "win32" or __import__("torch").cuda.is_available():
        pytest.skip("здесь torch видит карту")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA Old Card (UUID: GPU-1)'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    message = last_line(run_forked(notebook, nb, [0], tmp_path / "out", PATH=path, PROFILE="auto"))
    assert "Карта есть" in message and "драйвер" in message and "CUDA_VISIBLE_DEVICES=-1" in message
    hidden = run_forked(notebook, nb, [0], tmp_path / "out", PATH=path, PROFILE="auto", CUDA_VISIBLE_DEVICES="-1")
    assert hidden.returncode == 0 and "Профиль smoke" in hidden.stdout


def test_a_card_that_fails_a_product_stops_section_0(nb, monkeypatch):
    """The driver says that there is a card, and this torch cannot compute on it."""
    if nb["torch"].cuda.is_available():
        pytest.skip("здесь карта считает")
    monkeypatch.setattr(nb["torch"].cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="не считает.*драйвер"):
        nb["inspect_hardware"]()


def test_the_toy_profile_says_so_in_bold_at_its_start_and_end(smoke):
    marks = [any("игрушечный" in str(output.get("data", {}).get("text/markdown", "")) for output in cell.outputs) for cell in smoke["cells"]]
    first, last = marks.index(True), len(marks) - 1 - marks[::-1].index(True)
    assert first < 25 and last == len(marks) - 1 and marks.count(True) == 2


@pytest.mark.parametrize("settings, words", [
    ({"PROFILE": "full", "CUDA_VISIBLE_DEVICES": "-1"}, ["PROFILE=full", "видеокарт", "PROFILE=smoke"]),
    ({"ARTIFACTS_DIR": "{file}"}, ["ARTIFACTS_DIR={file}", "папка"]),
    ({"DATA_DIR": "{file}"}, ["DATA_DIR={file}", "папка"]),
    ({"SFT_MODEL": "{empty}"}, ["SFT_MODEL={empty}", "safetensors"]),
    ({"SFT_MODEL": "no/model"}, ["SFT_MODEL=no/model", "сеть", "папка"]),
    ({"SFT_DATASET": "rows/none.jsonl"}, ["SFT_DATASET=rows/none.jsonl", "jsonl"]),
    ({"SFT_DATASET": "{messages}"}, ["SFT_DATASET={messages}", "instruction", "messages"]),
    ({"SFT_DATASET": "{csv}"}, ["SFT_DATASET={csv}", "jsonl"]),
    ({"SFT_DATASET": "{damaged}"}, ["SFT_DATASET={damaged}", "parquet"]),
], ids=["full-on-cpu", "artifacts", "data", "empty-model", "no-model", "no-rows", "messages", "csv", "damaged"])
def test_section_0_refuses_in_a_sentence(notebook, nb, tmp_path, settings, words):
    paths = {name: tmp_path / file for name, file in
             {"file": "file", "empty": "empty", "messages": "m.jsonl", "csv": "rows.csv", "damaged": "rows.parquet"}.items()}
    paths["empty"].mkdir()
    paths["file"].write_text("")
    paths["messages"].write_text(json.dumps({"messages": [{"role": "user", "content": "да"}]}))
    paths["csv"].write_text("question;answer\nкто;я\n")
    paths["damaged"].write_bytes(b"PAR1 is not all")
    settings = {name: value.format(**paths) for name, value in settings.items()}
    message = last_line(run_forked(notebook, nb, [0], tmp_path / "out", **settings))
    assert all(word.format(**paths) in message for word in words), message


def test_settings_of_the_environment_reach_the_run(notebook, nb, tmp_path):
    run = run_forked(notebook, nb, [0], tmp_path / "out", EPOCHS="3", SEED="7", DEVICE_BATCH="2")
    assert run.returncode == 0 and "эпох 3, зерно 7" in run.stdout


def test_own_rows_need_two_columns(nb, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in [{"instruction": "а", "output": "б", "note": "в"}] * 3))
    rows = nb["open_rows"](str(path))
    assert rows.column_names == ["input", "instruction", "output"] and rows[2] == {"input": "", "instruction": "а", "output": "б"}


def test_parquet_rows_are_read(nb, tmp_path):
    path = str(tmp_path / "rows.parquet")
    nb["Dataset"].from_list([ROW, ROW | {"input": "Кратко."}]).to_parquet(path)
    assert nb["open_rows"](path)["input"][:] == ["", "Кратко."]


def test_the_notebook_finds_its_folder_or_says_from_where_to_run(notebook, nb, tmp_path):
    inside = run_forked(notebook, nb, [0], tmp_path / "out", cwd=ROOT / "data" / "sample")
    assert inside.returncode == 0, inside.stderr[-500:]
    message = last_line(run_forked(notebook, nb, [0], tmp_path / "out", cwd=tmp_path))
    assert "папки репозитория" in message and "project.ipynb" in message


@pytest.mark.parametrize("free, warned", [(2**26, True), (2**36, False)])
def test_little_disk_is_a_warning(notebook, nb, tmp_path, free, warned):
    """64 MiB free in place of 200: a sentence in bold that names the setting, and the notebook goes on."""
    disk = f"import shutil, types\nshutil.disk_usage = lambda folder: types.SimpleNamespace(free={free})"
    run = run_forked(notebook, nb, [0], tmp_path / "out", script=disk)
    assert run.returncode == 0 and ("`ARTIFACTS_DIR`.**" in run.stdout) == warned and "SFT_DATASET" in run.stdout
