"""The notebook's text, the README and the saved run: links, format, commands, and figures that are those of the metrics."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from conftest import NOTEBOOK, ROOT, SETTINGS

README = (ROOT / "README.md").read_text(encoding="utf-8")
SAVED = nbformat.read(ROOT / "project.ipynb", as_version=4)
METRICS = json.loads((ROOT / "artifacts" / "metrics.json").read_text(encoding="utf-8"))


def call(*command, **options) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)


def test_links_anchors_and_files_resolve(notebook):
    """ASCII anchors, each once, one for every section; what the two texts link or name is in the repository."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    anchors, headings = re.findall(r'<a id="(.*?)"></a>', text), re.findall(r"(?m)^## (\d+)\.", text)
    assert headings == [*map(str, range(15))] and {f"sec{number}" for number in headings} <= {*anchors}
    assert len({*anchors}) == len(anchors) and all(anchor.isascii() for anchor in anchors)
    titles = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", README)
    }
    tracked = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.splitlines()
    named = re.findall(r"\b(?:artifacts|data|tests)/[\w./-]+\.(?:json|csv|png|txt|py|jsonl)\b", README)
    for link in re.findall(r"\]\(([^)\s]+)\)", text + README) + named:
        if link.startswith("#"):
            assert link[1:] in {*anchors} | titles, link
        elif not link.startswith("http"):
            assert link in tracked, link
    assert not re.search(r"/home/\w|/root/|/work/|/tmp/", "\n".join(cell.source for cell in notebook.cells) + README)


@pytest.mark.parametrize("rules", ["format --check --line-length 88", "check --select E,F --ignore E402,E501"])
def test_the_notebook_is_formatted(tmp_path, rules):
    (tmp_path / "project.ipynb").write_bytes(NOTEBOOK.read_bytes())
    result = call(sys.executable, "-m", "ruff", *rules.split(), "--isolated", tmp_path / "project.ipynb")
    assert result.returncode == 0, result.stdout[-2000:]


def test_commands_of_the_readme_exist_with_their_options():
    """Shell blocks and commands within a line: the tool is there, knows the options, and its files exist."""
    blocks = "\n".join(
        re.findall(r"```bash\n(.*?)```", README, re.DOTALL) + re.findall(r"`(\.venv/bin/[^`]+)`", README)
    )
    commands = [line.split() for line in blocks.replace("\\\n", " ").splitlines() if line.startswith(".venv/bin/")]
    for tool, *rest in commands:
        tool = Path(sys.executable).parent / Path(tool).name
        words = [tool, *rest[:1]] if tool.name == "jupyter" else [tool]
        known = call(*words, "--help-all" if tool.name == "jupyter" else "--help").stdout.replace("_", "-")
        for word in rest:
            if word.startswith("--"):
                assert word.split("=")[0].replace("_", "-") in known, word
            elif word.endswith((".ipynb", ".txt")) and not word.startswith("artifacts/"):
                assert (ROOT / word).exists(), word
    assert {"papermill", "torchrun", "pytest", "jupyter", "pip"} == {Path(command[0]).name for command in commands}
    assert "pytest" in (ROOT / ".ci" / "run").read_text() and "ruff" in (ROOT / "requirements.txt").read_text()
    table = " ".join(re.findall(r"(?m)^\| (`[A-Z_`, ]+`) \|", README))
    assert sorted(re.findall(r"[A-Z_]{4,}", table)) == sorted(SETTINGS)


def test_snippets_of_the_readme_run(smoke, tmp_path):
    """Python blocks one after another on the models of the smoke run; what needs an account is left out."""
    lines = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL)).splitlines()
    code = "\n".join(line for line in lines if "push_to_hub" not in line).replace("artifacts/", f"{smoke['folder']}/")
    result = call(sys.executable, "-c", code, cwd=tmp_path)
    assert result.returncode == 0 and len(result.stdout.splitlines()) >= 2, result.stderr[-1000:]


# The saved run


def test_saved_outputs_are_of_one_whole_run():
    cells = [cell for cell in SAVED.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        texts = [text for kind, text in output.get("data", {}).items() if kind != "image/png"]
        text = re.sub(r"https?://\S+|</?\w[^>]*>", "", "\n".join([output.get("text", ""), *texts]))
        assert not re.search(r"(?<![\w<])/(?:[a-z_.][\w.-]+/)+|[A-Z]:\\", text), text[:300]
    assert METRICS["profile"] == "full" and SAVED.metadata.language_info.file_extension == ".py"


def rounded(number: str, value: float) -> bool:
    """Is `number` this value, rounded to the digits shown?"""
    digits = len(re.split("[.,]", number)[1]) if re.search("[.,]", number) else 0
    return round(float(value), digits) == float(number.replace(",", "."))


def test_figures_of_the_readme_are_those_of_metrics():
    """Columns are the runs in order; the two rows of answers that the model ended are shares in percents."""
    block = README.partition("<!-- results -->")[2].partition("<!-- /results -->")[0]
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")] for line in block.splitlines() if line.startswith("|")
    ]
    for key in ("test_bpc", "val_bpc", "train_s"):
        [(name, *cells)] = [row for row in rows if f"`{key}`" in row[0]]
        assert all(rounded(cell, run[key]) for cell, run in zip(cells, METRICS["pretrain"]["runs"], strict=True)), key
        lzma = re.findall(r"LZMA: ([\d.,]+)", name)
        assert all(rounded(number, METRICS["pretrain"]["baselines"]["compressor_bpc"]) for number in lzma)
    checks = METRICS["sft"]["checks"]
    shares = [row for row in rows if "`ended`" in row[0]]
    for name, *cells in shares:
        values = [100 * checks[key]["ended"] for key in re.findall(r"`(\w+)`", name) if key in checks]
        assert all(rounded(cell.removesuffix("%").strip(), value) for cell, value in zip(cells, values, strict=True)), (
            name
        )
    assert len(shares) == 2


def numbers_of(value) -> list[float]:
    if isinstance(value, dict | list):
        return [
            number for item in (value.values() if isinstance(value, dict) else value) for number in numbers_of(item)
        ]
    return [float(value)] if isinstance(value, int | float) else []


def test_figures_of_the_first_screen_are_those_of_metrics():
    """Every decimal and every percentage before section 0 is a value of metrics.json, rounded; millions and minutes are divided."""
    screen = "\n".join(cell.source for cell in SAVED.cells[:3]).partition("## 0.")[0]
    known, percents = numbers_of(METRICS), re.findall(r"(\d+(?:,\d+)?) %", screen)
    decimals = [number for number in re.findall(r"\b\d+,\d+\b", screen) if number not in percents]
    assert len(decimals) >= 4 and len(percents) >= 3 and "@" not in screen
    assert [n for n in decimals if not any(rounded(n, value / by) for value in known for by in (1, 60, 1e6))] == []
    assert [n for n in percents if not any(rounded(n, 100 * value) for value in known)] == []


def test_saved_history_is_that_of_the_metrics():
    with open(ROOT / "artifacts" / "history.csv", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    for run in METRICS["pretrain"]["runs"]:
        mine = [row for row in rows if row["run"] == run["name"]]
        bits, seconds = ([float(row[key]) for row in mine if row[key]] for key in ("eval_bpc", "seconds"))
        assert len(bits) == len(seconds) == run["epochs"]
        assert min(bits) == pytest.approx(run["val_bpc"]) and sum(seconds) == pytest.approx(run["train_s"])
