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
BIN = Path(sys.executable).parent
TRACKED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT
).stdout.split("\n")


def test_links_and_anchors_resolve(notebook):
    """Inside the notebook ASCII anchors, each once; files of the repository in both texts."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    anchors = re.findall(r'<a id="(.*?)"></a>', text)
    assert len({*anchors}) == len(anchors) >= 14 and all(anchor.isascii() for anchor in anchors)
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert {link[1:] for link in links if link.startswith("#")} <= {*anchors}
    headings = re.findall(r"(?m)^## (\d+)\.", text)
    assert headings == [str(number) for number in range(15)] and [f"sec{n}" for n in headings] == [
        a for a in anchors if a[3:].isdigit()
    ]
    titles = {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", README)
    }
    for link in links + re.findall(r"\]\(([^)\s]+)\)", README):
        if link.startswith("#"):
            assert link[1:] in anchors or link[1:] in titles, link
        elif not link.startswith(("http", "mailto:")):
            assert (ROOT / link.partition("#")[0]).exists(), link


def test_files_that_the_texts_name_are_kept(notebook):
    """Each file of artifacts/, data/ and tests/ that the README names is tracked, or written by a run and said so by .gitignore."""
    named = {*re.findall(r"\b((?:artifacts|data|tests)/[\w./-]+\.(?:json|csv|png|txt|py|jsonl))\b", README)}
    missing = {name for name in named if not (ROOT / name).exists() or name not in TRACKED}
    assert missing == set()


def test_the_notebook_is_formatted(tmp_path):
    ruff = [sys.executable, "-m", "ruff"]
    copy = tmp_path / "project.ipynb"
    copy.write_bytes(NOTEBOOK.read_bytes())
    checks = [
        ["format", "--isolated", "--check", "--line-length", "88"],
        ["check", "--isolated", "--select", "E,F", "--ignore", "E402,E501"],
    ]
    for check in checks:
        result = subprocess.run([*ruff, *check, str(copy)], capture_output=True, text=True)
        assert result.returncode == 0, result.stdout[-2000:]


def test_the_notebook_names_no_place(notebook):
    """No path of a machine in any cell; a license beside it."""
    text = "\n".join(cell.source for cell in notebook.cells)
    assert not re.search(r"/home/\w|/root/|/work/|/tmp/|[A-Z]:\\\\", text)
    assert (ROOT / "LICENSE").exists()


# Commands


def commands() -> list[list[str]]:
    """The lines of the README's shell blocks, divided at && and |, comments away."""
    blocks = re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", README, re.DOTALL)
    lines = [line.split(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [
        part.split()
        for line in lines
        for part in re.split(r"&&|\|", line)
        if part.strip() and not part.strip().startswith("#")
    ]


def test_commands_of_the_readme_exist_with_their_options():
    helps, tools = {}, [[*command] for command in commands()]
    for command in tools:
        while re.fullmatch(r"[A-Z_]+=\S+", command[0]):  # settings before a command
            assert command.pop(0).split("=")[0] in {
                *SETTINGS,
                "HF_HUB_OFFLINE",
                "CUDA_VISIBLE_DEVICES",
                "OMP_NUM_THREADS",
            }
        if not command[0].startswith(".venv/bin/"):
            continue
        tool = BIN / Path(command[0]).name
        assert tool.exists(), command
        extra = command[1:2] if command[0].endswith("jupyter") else []
        key = (tool, *extra)
        if key not in helps and tool.name not in ("pip", "pytest", "python"):
            page = subprocess.run([tool, *extra, "--help-all" if extra else "--help"], capture_output=True, text=True)
            helps[key] = page.stdout.replace("_", "-")
        for option in command[1:]:
            if option.startswith("--") and key in helps:
                assert option.split("=")[0].replace("_", "-") in helps[key], option
            if option.endswith((".ipynb", ".txt")) and not option.startswith("artifacts/"):
                assert (ROOT / option).exists(), option
    names = {Path(command[0]).name for command in tools if command}
    assert {"papermill", "torchrun", "pytest", "jupyter"} <= names
    assert any("--nnodes" in " ".join(command) for command in tools)
    assert "pytest" in (ROOT / ".ci" / "run").read_text() and "ruff" in (ROOT / "requirements.txt").read_text()


def test_snippets_of_the_readme_run(smoke, tmp_path):
    """Python blocks as they stand, on the folders of the smoke run; what needs an account is left out."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        lines = [line for line in block.splitlines() if "push_to_hub" not in line]
        code = "\n".join(lines).replace("artifacts/", f"{smoke['folder']}/")
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0 and run.stdout.strip(), run.stderr[-1000:]


def test_settings_of_the_readme_are_those_of_the_notebook(nb):
    table = {
        name for row in re.findall(r"(?m)^\| (`[A-Z_`, ]+`) \|", README) for name in re.findall(r"[A-Z_]{4,}", row)
    }
    assert table == {*nb["SETTINGS"]}


# The saved run


def test_saved_outputs_are_of_one_whole_run():
    cells = [cell for cell in SAVED.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error" and output.get("name") != "stderr"
        texts = [
            output.get("text", ""),
            *(text for kind, text in output.get("data", {}).items() if kind != "image/png"),
        ]
        text = re.sub(r"https?://\S+|</?\w[^>]*>", "", "\n".join(texts))
        assert not re.search(r"(?<![\w<])/(?:[a-z_.][\w.-]+/)+|[A-Z]:\\", text), text[:300]
    assert METRICS["profile"] == "full" and SAVED.metadata.language_info.file_extension == ".py"


def find(key: str):
    """The value of a dotted key in metrics.json; a number is a place in a list."""
    value = METRICS
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def rounded(number: str, value: float) -> bool:
    digits = len(re.split("[.,]", number)[1]) if re.search("[.,]", number) else 0
    return round(float(value), digits) == float(number.replace(",", "."))


def test_figures_of_the_readme_are_those_of_metrics():
    """In each row of a table that names keys of metrics.json stand their values, rounded to the digits shown."""
    checked = 0
    for line in README.splitlines():
        keys = [key for key in re.findall(r"`([a-z_]+(?:\.\w+)*)`", line) if key.split(".")[0] in METRICS]
        if line.startswith("|") and keys:
            cells = re.sub(r"`[^`]*`", "", line).replace("\u00a0", "").replace("*", "").split("|")
            numbers = re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)?", " ".join(cells[2:]))
            for key, number in zip(keys, numbers, strict=True):
                assert rounded(number, find(key)), (key, number)
                checked += 1
    assert checked >= 6


def numbers_of(value) -> list[float]:
    if isinstance(value, dict | list):
        return [n for item in (value.values() if isinstance(value, dict) else value) for n in numbers_of(item)]
    return [float(value)] if isinstance(value, int | float) else []


def test_figures_of_the_first_screen_are_those_of_metrics():
    """Every decimal with a comma and every percentage before section 0 is a value of metrics.json, rounded."""
    screen = "\n".join(cell.source for cell in SAVED.cells[:3]).partition("## 0.")[0]
    known = numbers_of(METRICS)
    decimals, percents = re.findall(r"\b\d+,\d+\b", screen), re.findall(r"(\d+(?:,\d+)?) %", screen)
    decimals = [number for number in decimals if number not in percents]
    assert len(decimals) >= 4 and len(percents) >= 2 and "@" not in screen
    assert [
        n
        for n in decimals
        if not any(rounded(n, value) or rounded(n, value / 60) or rounded(n, value / 1e6) for value in known)
    ] == []
    assert [n for n in percents if not any(rounded(n, 100 * value) for value in known)] == []


def test_saved_history_is_that_of_the_metrics():
    with open(ROOT / "artifacts" / "history.csv", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    for run in METRICS["pretrain"]["runs"]:
        mine = [row for row in rows if row["run"] == run["name"]]
        assert len(mine) == run["epochs"] and [float(row["epoch"]) for row in mine] == [*range(1, len(mine) + 1)]
        assert min(float(row["eval_bpc"]) for row in mine) == pytest.approx(run["val_bpc"])
        assert sum(float(row["seconds"]) for row in mine) == pytest.approx(run["train_s"])
