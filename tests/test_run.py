"""What one whole smoke run leaves: metrics, answers, figures, models that load; and what the saved notebook and README show."""
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT

METRICS = {
    "corpus": {"works", "missing", "chars_raw", "chars_clean", "letters_kept"},
    "tokenizer": {"vocab_size", "chars_per_token"},
    "pretrain": {"params", "train_tokens", "epochs", "batch_size", "weight_decay", "val_bpc", "test_bpc", "test_nats_per_token",
                 "tokens_per_s", "mfu", "train_s", "teacher", "baselines", "longest_copy_chars_median"},
    "sft": {"model", "dataset", "stand_in", "rows", "epochs", "eval_loss_before", "eval_loss_after", "token_accuracy",
            "tokens_per_s", "train_s", "checks", "answers"},
}
PIPELINE = """
import json, sys, time
from transformers import pipeline
first = pipeline("text-generation", sys.argv[1])
chat = pipeline("text-generation", sys.argv[2])
print(json.dumps([first("Нет, жизнь не кончена", max_new_tokens=20), chat([{"role": "user", "content": "расскажи стих"}], max_new_tokens=20),
                  first.model.generation_config.use_cache, chat.model.generation_config.use_cache]))
"""


def test_metrics_have_the_agreed_fields(smoke):
    metrics = smoke["metrics"]
    assert {"profile", "device", "versions", "wall_s"} <= metrics.keys() and metrics["profile"] == "smoke"
    for part, fields in METRICS.items():
        assert fields <= metrics[part].keys()
    assert {"unigram_bpc", "compressor_bpc"} <= metrics["pretrain"]["baselines"].keys() and "train_s" in metrics["pretrain"]["teacher"]
    assert metrics["corpus"]["missing"] == [] and metrics["corpus"]["works"] == 14 and metrics["sft"]["stand_in"] is True
    raw = [path.read_bytes().decode("utf-8-sig") for path in Path("data/sample/corpus").iterdir()]
    assert metrics["corpus"]["chars_raw"] == sum(map(len, raw))
    assert 0.8 < metrics["corpus"]["letters_kept"] <= 1 and metrics["corpus"]["chars_clean"] < metrics["corpus"]["chars_raw"]
    checks = metrics["sft"]["checks"]
    assert checks.keys() == {"before_greedy", "before", "after_greedy", "after"}
    assert all({"ended", "russian", "no_loops"} <= row.keys() and all(0 <= share <= 1 for share in row.values()) for row in checks.values())
    assert metrics["wall_s"] > metrics["pretrain"]["train_s"] + metrics["pretrain"]["teacher"]["train_s"] + metrics["sft"]["train_s"]


def test_both_stages_learned(smoke):
    pretrain, sft = smoke["metrics"]["pretrain"], smoke["metrics"]["sft"]
    assert pretrain["test_bpc"] < pretrain["baselines"]["unigram_bpc"] and sft["eval_loss_after"] < sft["eval_loss_before"]


def pages(cells) -> list[str]:
    return ["".join(output.get("data", {}).get("text/html", output.get("data", {}).get("text/markdown", output.get("text", ""))))
            for cell in cells for output in cell.outputs]


def test_ten_continuations_and_four_answers_are_shown(smoke, nb):
    shown = pages(smoke["cells"])
    assert any(all(prompt in page for prompt in nb["TEST_PROMPTS"]) and len(page) > 2000 for page in shown)
    answers = smoke["metrics"]["sft"]["answers"]
    assert [row["question"] for row in answers] == nb["QUESTIONS_RUS"] and any(row["before"] != row["after"] for row in answers)


def test_saved_models_load_and_generate_fast(smoke):
    """README's lines in a fresh process: a continuation, an answer, and the cache of keys and values on for both."""
    folders = [str(smoke["folder"] / stage) for stage in ("pretrain", "sft")]
    run = subprocess.run([sys.executable, "-c", PIPELINE, *folders], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    text, chat, *cached = json.loads(run.stdout.splitlines()[-1])
    assert text[0]["generated_text"].startswith("Нет, жизнь не кончена") and len(text[0]["generated_text"]) > 25
    assert chat[0]["generated_text"][-1]["role"] == "assistant" and cached == [True, True]


def test_saved_weights_are_safetensors_and_the_chat_template_is_kept(smoke, nb):
    for stage in ("pretrain", "sft"):
        assert (smoke["folder"] / stage / "model.safetensors").exists() and not list((smoke["folder"] / stage).glob("*.bin"))
    assert (smoke["folder"] / "sft" / "chat_template.jinja").read_text() == nb["CHAT_TEMPLATE"]


def test_outputs_are_clean_and_name_no_path(smoke):
    for cell in smoke["cells"]:
        for output in cell.outputs:
            page = json.dumps({kind: data for kind, data in output.items() if kind != "data"} | {
                kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"}, ensure_ascii=False)
            assert output.output_type != "error" and "Warning" not in page and output.get("name") != "stderr", page[:500]
            assert not re.search(r"it/s\]|\d+%\||/home/|/root/|/tmp/|site-packages", page) and str(ROOT) not in page, page[:500]


def test_figures_are_saved(smoke):
    figures = list((smoke["folder"] / "figures").iterdir())
    assert len(figures) >= 2 and all(path.read_bytes().startswith(b"\x89PNG") for path in figures)


def test_definitions_have_no_hidden_inputs(nb):
    for name in ("clean_work", "group_works", "split_works", "train_tokenizer", "pack_texts", "bits_per_char", "generate", "to_dialogue",
                 "TEST_PROMPTS", "QUESTIONS_RUS"):
        assert name in nb
    assert "cfg" not in nb and "works" not in nb


# The saved notebook and the README

@pytest.fixture(scope="module")
def saved():
    notebook = nbformat.read(ROOT / "project.ipynb", as_version=4)
    assert notebook.metadata.language_info.file_extension == ".py"  # or `nbconvert --to script` would write project.txt
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_saved_outputs_are_of_one_run_and_name_no_path(saved):
    """A figure is base64: its letters are no path."""
    assert [cell.execution_count for cell in saved] == list(range(1, len(saved) + 1))
    for output in (output for cell in saved for output in cell.outputs):
        texts = [output.get("text", ""), *(text for kind, text in output.get("data", {}).items() if kind != "image/png")]
        assert output.output_type != "error" and output.get("name") != "stderr"
        text = re.sub(r"https?://\S+", "", "\n".join(texts))  # an answer may hold an address
        assert not re.search(r"(?<![\w<])/(?:[a-z_.][\w.-]+/)+|[A-Z]:\\", text)


README = Path("README.md").read_text(encoding="utf-8")


def result_rows() -> list[list[str]]:
    block = "\n".join(re.findall(r"<!-- results -->(.*?)<!-- /results -->", README, re.DOTALL))
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in block.splitlines() if line.startswith("| ")]


def test_readme_results_are_those_of_metrics():
    """Each row that names a key of metrics.json shows its value, rounded to the digits shown."""
    metrics, checked = json.loads(Path("artifacts/metrics.json").read_text(encoding="utf-8")), 0
    for name, *values in result_rows():
        keys = [key for key in re.findall(r"`([a-z_.]+)`", name) if not key.endswith(".csv")]
        for key, number in zip(keys, re.findall(r"\d+(?:[.,]\d+)?", " ".join(values).replace("\u00a0", "")), strict=True) if keys else ():
            value = metrics
            for part in key.split("."):
                value = value[part]
            digits = len(re.split("[.,]", number)[1]) if re.search("[.,]", number) else 0
            assert round(float(value), digits) == float(number.replace(",", ".")), key
            checked += 1
    assert checked >= 6


def test_first_screen_quotes_the_saved_run():
    """Decimals and percentages of the first cell's table of results are those of metrics.json or of one of the tables, rounded."""
    screen = nbformat.read(ROOT / "project.ipynb", as_version=4).cells[0].source
    table = "\n".join(line for line in screen.partition("с чем сравнить")[2].partition("\n\n")[0].splitlines())
    files = (Path("artifacts/metrics.json"), Path("artifacts/ablations.csv"))
    known = {float(number) for path in files for number in re.findall(r"\d+\.\d+", path.read_text(encoding="utf-8"))}
    decimals, percents = re.findall(r"\d,\d{3}", table), re.findall(r"(\d+) %", table)
    assert len(decimals) >= 6 and len(percents) >= 2
    assert {number for number in decimals if float(number.replace(",", ".")) not in {round(value, 3) for value in known}} == set()
    checks = json.loads(files[0].read_text(encoding="utf-8"))["sft"]["checks"]
    assert {int(number) for number in percents} <= {round(100 * shares[name]) for shares in checks.values() for name in ("ended", "no_loops")}


def test_readme_comparisons_are_those_of_the_tables():
    """Every number of the rows that name a table of artifacts/ stands in one line of it."""
    checked = 0
    for name, *values in result_rows():
        for file in re.findall(r"`(\w+\.csv)`", name):
            numbers = {float(number.replace(",", ".")) for number in re.findall(r"\d+(?:[.,]\d+)?", " ".join(values))}
            lines = [{float(cell) for cell in row if re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell)}
                     for row in csv.reader(Path("artifacts", file).read_text(encoding="utf-8").splitlines())]
            assert any(numbers <= line for line in lines), (name, values)
            checked += 1
    assert checked


def test_readme_fault_table_names_tests_that_are_there():
    """Each fault has a test, and each test that is named is found."""
    table = README.partition("## Если что-то сломалось")[2].partition("\n## ")[0]
    defined = set(re.findall(r"def (test_\w+)", "\n".join(path.read_text(encoding="utf-8") for path in Path("tests").glob("test_*.py"))))
    rows = [line for line in table.splitlines() if line.startswith("| ") and "| тест" not in line]
    named = [re.findall(r"`(test_\w+)`", row) for row in rows]
    assert len(rows) > 10 and all(named) and {name for names in named for name in names} <= defined
