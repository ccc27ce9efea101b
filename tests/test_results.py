"""Sections 9 and 14 and the whole smoke run: every number recomputed from the weights, logs and texts that it left."""

import csv
import html
import json
import math
import re
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest

RECIPES = ("plain", "muon", "distilled")


# Definitions


def test_longest_copy_is_that_of_brute_force(nb):
    """Random texts of three letters and spaces with planted copies: the longest piece that begins with a word."""
    random, longest = np.random.default_rng(0), []
    for _ in range(40):
        source, text = "".join(random.choice(list("абв "), 300)), "".join(random.choice(list("абвг "), 60))
        start, length, place = random.integers(0, 280), int(random.integers(15, 40)), random.integers(0, 60)
        text = text[:place] + source[start : start + length] + text[place:]
        words = [i for i in range(len(text)) if text[i] != " " and text[i - 1 : i] in ("", " ")]
        pieces = {text[i:j] for i in words for j in range(i + 1, len(text) + 1) if text[i:j] in source}
        found = nb["longest_copy"](text, source.encode("cp1251"))
        assert found in pieces and len(found) == max(map(len, pieces))
        longest.append(len(found))
    assert min(longest) < 15 < 25 < max(longest) and nb["longest_copy"]("икс", b"") == ""


def test_a_training_in_figures_by_hand(nb):
    """The last epoch is not the best one."""
    log = [
        {"weights": 5, "weight_decay": 0.1},
        {"epoch": 0.5, "step": 5, "loss": 3.0},
        {"epoch": 1.0, "step": 10, "loss": 2.5},
        {"epoch": 1.0, "step": 10, "seconds": 4.0},
        {"epoch": 1.0, "step": 10, "eval_loss": 2.0, "eval_bpc": 1.5},
        {"epoch": 1.5, "step": 15, "loss": 2.0},
        {"epoch": 2.0000000001, "step": 20, "seconds": 2.0},
        {"epoch": 2.0, "step": 20, "eval_loss": 2.2, "eval_bpc": 1.75},
    ]
    row = nb["summarize_run"]("x", log, 1.8)
    assert row == {"name": "x", "epochs": 2, "train_s": 6.0, "val_bpc": 1.5, "test_bpc": 1.8}


@pytest.mark.parametrize(
    "card, known", [("NVIDIA H100 80GB HBM3", True), ("NVIDIA H200", True), ("NVIDIA H20", False), ("CPU", False)]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_speed_by_hand(nb, tiny, smoke_cfg, notebook, capsys, card, known, processes):
    """1000 tokens an epoch, two epochs in 5 s: 400 tokens a second; 6 N + 6 L d T operations a token; the share of one card's peak."""
    [cell] = [cell.source for cell in notebook.cells if "989e12" in cell.source]
    row = {"name": "muon", "epochs": 2, "train_s": 5.0, "val_bpc": 1.5, "test_bpc": 1.6}
    scope = nb | {
        "cfg": smoke_cfg,
        "model": tiny,
        "last": row,
        "summaries": [row],
        "metrics": {},
        "train_tokens": 1000,
        "nats": 3.0,
    }
    scope |= {"device": SimpleNamespace(name=card), "process": SimpleNamespace(num_processes=processes)}
    scope |= {
        "logs": {"muon": [{"weight_decay": 0.3}, {"weight_decay": 0.0}]},
        "baselines": {"униграммы": [4, 5], "архиватор LZMA": [2, 3]},
    }
    exec(cell, scope)
    flops = 400 / processes * 6 * (tiny.num_parameters() + 2 * 128 * 128)
    assert scope["metrics"]["pretrain"].items() >= {
        "epochs": 2, "train_s": 5.0, "tokens_per_s": 400.0, "mfu": pytest.approx(flops / 989e12) if known else None, "weight_decay": 0.3,
        "baselines": {"unigram_bpc": 5, "compressor_bpc": 3}, "val_bpc": 1.5, "test_bpc": 1.6, "batch_size": 8,
    }.items()  # fmt: skip
    assert "секунду 400" in capsys.readouterr().out


def test_a_typed_prompt_is_cleaned_as_the_corpus_was(nb, capsys):
    assert (
        nb["prepare_prompt"](' Ещё вчера он сказал: "Пора" --\u00a0и вышел ') == "Еще вчера он сказал: «Пора» — и вышел"
    )
    assert capsys.readouterr().out == ""
    assert nb["prepare_prompt"]("Он 漢ушел ☃") == "Он ушел" and capsys.readouterr().out.strip().endswith(": ☃漢")


def test_a_saved_model_carries_its_decoding_and_its_card(nb, tiny, tokenizer, tmp_path):
    card = {"license": "cc0-1.0", "title": "Имя", "text": "Описание", "limits": "мала"}
    nb["save_model"](tiny, tokenizer, tmp_path, card, **nb["SAMPLING"], max_new_tokens=33)
    model, loaded = nb["load_saved"](tmp_path)
    settings = json.loads((tmp_path / "generation_config.json").read_text())
    assert settings.items() >= {"use_cache": True, "max_new_tokens": 33, "eos_token_id": 2, **nb["SAMPLING"]}.items()
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True and not [*tmp_path.glob("*.bin")]
    ids = nb["torch"].randint(4, 600, (1, 20))
    assert (
        nb["torch"].allclose(model.eval()(ids).logits, tiny.eval()(ids).logits, atol=1e-5)
        and model.dtype == nb["torch"].float32
    )
    assert loaded.get_vocab() == tokenizer.get_vocab()
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n") and all(
        part in text for part in ("license: cc0-1.0\n", "# Имя\n", "Описание", "Ограничения: мала")
    )


# The whole run


def pages(smoke) -> list[str]:
    shown = [
        output.get("data", {}) | {"text": output.get("text", "")}
        for cell in smoke["cells"]
        for output in cell.get("outputs", [])
    ]
    return [
        data.get("text/html") or data.get("text/markdown") or data["text"] or data.get("text/plain", "")
        for data in shown
    ]


def table(smoke, *headers: str) -> list[list[str]]:
    """The rows of the last table that has these columns, the headings first."""
    found = None
    for page in pages(smoke):
        rows = [
            re.findall(r"(?s)<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", page)
        ]
        rows = [[html.unescape(cell).replace("\u00a0", "") for cell in row] for row in rows]
        found = rows if rows and {*headers} <= {*rows[0]} else found
    return found


@pytest.fixture(scope="module")
def run(nb, smoke, smoke_cfg) -> SimpleNamespace:
    """Logs, best models and texts of the smoke run."""
    folders = {name: next((smoke["folder"] / "runs").glob(f"{name}-*")) for name in RECIPES}
    logs = {name: json.loads((folder / "log.json").read_text(encoding="utf-8")) for name, folder in folders.items()}
    models = {name: nb["load_run"](folder) for name, folder in folders.items()}
    tokenizer = nb["AutoTokenizer"].from_pretrained(smoke["folder"] / "tokenizer")
    kept = {"folder": smoke["folder"], "metrics": smoke["metrics"], "cfg": smoke_cfg, **smoke["texts"]}
    return SimpleNamespace(logs=logs, models=models, tokenizer=tokenizer, **kept)


def bits_of(nb, run, name: str, part: str) -> float:
    return nb["bits_per_char"](run.models[name], run.tokenizer, getattr(run, part).values(), 128)


def test_scores_are_those_of_the_weights_on_disk(nb, run):
    rows = run.metrics["pretrain"]["runs"]
    assert [row["name"] for row in rows] == [*RECIPES] and [row["epochs"] for row in rows] == [2, 4, 6]
    for row in rows:
        log = run.logs[row["name"]]
        assert row["val_bpc"] == min(x["eval_bpc"] for x in log if "eval_bpc" in x)
        found = [bits_of(nb, run, row["name"], part) for part in ("validation", "test")]
        assert [row["val_bpc"], row["test_bpc"]] == pytest.approx(found, rel=1e-5) and abs(found[0] - found[1]) > 0.01
        assert row["train_s"] == pytest.approx(sum(x["seconds"] for x in log if "seconds" in x))


def test_figures_of_the_first_stage(nb, run, smoke):
    found, last, texts = run.metrics["pretrain"], run.metrics["pretrain"]["runs"][-1], [*run.test.values()]
    assert found.items() >= {key: last[key] for key in ("epochs", "train_s", "val_bpc", "test_bpc")}.items()
    labels = np.array(nb["pack_texts"](run.train.values(), run.tokenizer, 128)["labels"])
    assert found["train_tokens"] == (labels != -100).sum() and found["batch_size"] == 8 and found["weight_decay"] == 0.2
    assert found["tokens_per_s"] == pytest.approx(found["train_tokens"] * 6 / found["train_s"]) and found["mfu"] is None
    assert found["params"] == sum(weight.numel() for weight in run.models["plain"].parameters())
    tokens = sum(len(nb["encode"]([text], run.tokenizer)[0]) for text in texts)
    assert found["test_nats_per_token"] == pytest.approx(
        found["test_bpc"] * math.log(2) * sum(map(len, texts)) / tokens
    )
    assert any(f"перплексия {math.exp(found['test_nats_per_token']):.1f}:" in page for page in pages(smoke))


def test_tokenizer_and_the_rest_of_the_metrics(nb, run, smoke):
    best, texts = nb["train_tokenizer"](run.train.values(), 600), [*run.validation.values()]
    assert run.tokenizer.get_vocab() == best.get_vocab() and nb["encode"](texts, run.tokenizer) == nb["encode"](
        texts, best
    )
    ratio = sum(map(len, texts)) / sum(map(len, nb["encode"](texts, best)))
    assert run.metrics["tokenizer"] == {"vocab_size": 600, "chars_per_token": pytest.approx(ratio)}
    assert (run.metrics["profile"], run.metrics["device"]) == ("smoke", "CPU")
    assert run.metrics["versions"].keys() == {"python", "torch", "transformers", "tokenizers", "datasets", "trl"}
    seconds = sum(row["train_s"] for row in run.metrics["pretrain"]["runs"]) + run.metrics["sft"]["train_s"]
    assert run.metrics["wall_s"] > seconds > 0


def test_the_staircase_shows_every_run_under_its_name(nb, run, smoke):
    """Two baselines, then the runs in order; validation and test in their columns."""
    train_ids = np.concatenate(nb["encode"]([*run.train.values()], run.tokenizer))
    texts = ["".join(getattr(run, part).values()) for part in ("validation", "test")]
    primer = "".join(run.train.values())[-2_000_000:]
    unigrams = [nb["unigram_bpc"](train_ids, text, run.tokenizer) for text in texts]
    lzma = [nb["compressor_bpc"](primer, text) for text in texts]
    assert [*run.metrics["pretrain"]["baselines"].values()] == pytest.approx([unigrams[1], lzma[1]])
    head, *rows = table(smoke, "ступень", "валидация", "тест")
    assert head == ["ступень", "эпох", "обучение, с", "валидация", "тест"] and len(rows) == 5
    assert [row[:3] for row in rows[:2]] == [["униграммы", "–", "–"], ["архиватор LZMA", "–", "–"]]
    assert [[float(cell) for cell in row[3:]] for row in rows[:2]] == [
        pytest.approx(x, abs=6e-4) for x in (unigrams, lzma)
    ]
    for row, found, label in zip(rows[2:], run.metrics["pretrain"]["runs"], ("AdamW", "Muon", "учитель")):
        assert label in row[0]
        expected = [found[key] for key in ("epochs", "train_s", "val_bpc", "test_bpc")]
        assert [float(cell) for cell in row[1:]] == pytest.approx(expected, abs=6e-4)
    epoch = [[x["eval_bpc"] for x in run.logs[name] if "eval_bpc" in x][1] for name in RECIPES]
    assert any(all(f"{bits:.3f}" in page for bits in epoch) and "после эпохи 2:" in page for page in pages(smoke))
    first, last = (run.metrics["pretrain"]["runs"][i]["test_bpc"] for i in (0, -1))
    assert any(f"Тест: {first:.3f} → {last:.3f} бита" in page for page in pages(smoke))


def test_history_is_that_of_the_logs(run, smoke):
    with open(run.folder / "history.csv", encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    for name in RECIPES:
        mine, log = [row for row in rows if row["run"] == name], run.logs[name]
        for key in ("loss", "eval_bpc", "seconds"):
            found = [(float(row["epoch"]), float(row["step"]), float(row[key])) for row in mine if row[key]]
            assert found == [pytest.approx((x["epoch"], x["step"], x[key])) for x in log if key in x]
    assert {row["run"] for row in rows} == {*RECIPES} and rows[-1]["run"] == "distilled"
    assert any(f"строк в нём {len(rows)}" in page for page in pages(smoke))


def test_continuations_are_those_of_the_saved_weights(nb, run, smoke):
    """As a file and as shown: of the best run under those of the first, each under its prompt."""
    kept = json.loads((run.folder / "continuations.json").read_text(encoding="utf-8"))
    assert kept.keys() == {"prompts", "plain", "distilled"} and kept["prompts"] == nb["TEST_PROMPTS"]
    for name in ("plain", "distilled"):
        assert kept[name] == nb["generate"](run.models[name], run.tokenizer, nb["TEST_PROMPTS"], 60, 42)
    assert len({*kept["plain"], *kept["distilled"]}) == 20
    found = [
        re.sub(r"\s", "", html.unescape(re.sub(r"<[^>]+>", "", page))) for page in pages(smoke) if "<small>" in page
    ]
    for i, prompt in enumerate(nb["TEST_PROMPTS"]):
        plain, best = (re.sub(r"\s", "", name + prompt + kept[name][i]) for name in ("plain", "distilled"))
        assert found.count(plain) == 2 and found.count(best) == 1 and plain in found[: found.index(best)][-1]


def test_copies_are_measured_against_the_training_texts(nb, run, smoke):
    kept = json.loads((run.folder / "continuations.json").read_text(encoding="utf-8"))
    source, test = "\n".join(run.train.values()), "".join(run.test.values())
    length = round(np.mean([*map(len, kept["distilled"])]))
    control = [test[place : place + length] for place in np.linspace(0, len(test) - length, 10, dtype=int)]
    head, *rows = table(smoke, "у модели", "в тестовых книгах")
    medians = []
    for column, texts in zip(zip(*rows, strict=True), (kept["distilled"], control), strict=True):
        copies = [nb["longest_copy"](text, source.encode("cp1251", "replace")) for text in texts]
        assert [cell.strip() for cell in column] == [copy.strip() for copy in copies]
        medians.append(median(map(len, copies)))
    assert run.metrics["pretrain"]["longest_copy_chars_median"] == medians[0]
    line = "Медиана: {:.0f} символов у модели, {:.0f} у".format(*medians)
    assert any(line in page for page in pages(smoke))
    count = sum(prompt.lower() in source.lower() for prompt in nb["TEST_PROMPTS"])
    assert any(f"есть в обучающих текстах: {count} из 10" in page for page in pages(smoke))


def test_shown_shapes_targets_and_losses(nb, run, smoke):
    """The target beside its input, the parameters by part, the block and its loss, tokens and padding of the blocks."""
    text = "\n".join(pages(smoke))
    given, target = (eval(re.search(rf"(?m)^{label}: (\[.*\])$", text)[1]) for label in ("вход", "цель"))
    blocks = nb["pack_texts"](run.train.values(), run.tokenizer, 128)
    ids = blocks[0]["input_ids"]
    assert given == [run.tokenizer.decode([i]) for i in ids[:8]] and target == [
        run.tokenizer.decode([i]) for i in ids[1:9]
    ]
    assert "токены (1, 128) → эмбеддинги (1, 128, 128) → логиты (1, 128, 600)" in text
    padding = np.mean(np.array(blocks["labels"]) == -100)
    count = len(nb["pack_texts"](run.validation.values(), run.tokenizer, 128))
    assert f"доля `<pad>` {padding:.1%}. Блоков валидации: {count}." in text
    millions = {row[0]: float(row[1]) for row in table(smoke, "часть", "параметров, млн")[1:]}
    assert millions.keys() == {"embed_tokens", "self_attn", "mlp", "norm"}
    assert sum(millions.values()) == pytest.approx(run.metrics["pretrain"]["params"] / 1e6, abs=2e-3)
    rows = [row[1:] for row in table(smoke, "обновляет", "weight decay")[1:]]
    assert [row[0] for row in rows] == ["Muon"] * (len(rows) - 2) + ["AdamW"] * 2 and rows[-1][2] == "0.000"
    assert [float(row[1]) for row in rows] == [0.03] * (len(rows) - 2) + [0.003] * 2


def test_what_the_run_leaves(nb, run, smoke):
    """The best weights of the last run with its card, three figures, no checkpoint; the finished mark."""
    runs = run.folder / "runs"
    assert (runs / "finished").exists() and not [*runs.glob("*/checkpoint-*")] and len([*runs.glob("*/log.json")]) == 4
    figures = {path.name: path.read_bytes()[:4] for path in (run.folder / "figures").iterdir()}
    assert figures.keys() >= {"plain_loss.png", "staircase.png", "sft_loss.png"} and {*figures.values()} == {b"\x89PNG"}
    model, _ = nb["load_saved"](run.folder / "pretrain")
    for name, weight in run.models["distilled"].state_dict().items():
        assert nb["torch"].equal(model.state_dict()[name], weight)
    card, found = (run.folder / "pretrain" / "README.md").read_text(encoding="utf-8"), run.metrics["pretrain"]
    figures = (
        f"тест {found['test_bpc']:.3f}",
        f"валидация {found['val_bpc']:.3f}",
        "эпох 6",
        "distilled",
        f"(их {len(run.train)})",
    )
    assert all(figure in card for figure in figures) and "license: " in card
    settings = json.loads((run.folder / "pretrain" / "generation_config.json").read_text())
    assert settings.items() >= {**nb["SAMPLING"], "max_new_tokens": 60, "use_cache": True}.items()


def test_the_saved_models_are_asked_at_the_end(nb, run, smoke, monkeypatch):
    cfg = SimpleNamespace(**vars(run.cfg) | {"artifacts_dir": run.folder})
    monkeypatch.setitem(nb, "cfg", cfg)
    text, prompt = "\n".join(pages(smoke)), "Поздно вечером в гостиную вошел"
    written = nb["continue_text"](prompt)
    assert written.startswith(prompt) and written in text
    assert written == prompt + nb["generate"](run.models["distilled"], run.tokenizer, [prompt], 60, 0)[0]
    assert nb["continue_text"](prompt, seed=1) != written and nb["continue_text"]('Ещё "да" ').startswith("Еще «да»")
    saved, question = nb["load_saved"](run.folder / "sft"), [{"role": "user", "content": "Как заварить чай?"}]
    answer, greedy = (nb["generate"](*saved, [question], 60, **nb[how])[0] for how in ("ANSWERING", "GREEDY"))
    assert nb["ask"]("Как заварить чай?") == answer != greedy and f"— Как заварить чай?\n— {answer}" in text


def test_outputs_are_clean_and_name_no_path(smoke):
    for page in pages(smoke):
        assert not re.search(r"Warning|it/s\]|\d+%\||/home/|/root/|/tmp/|site-packages", page), page[:500]
    outputs = [output for cell in smoke["cells"] for output in cell.get("outputs", [])]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]
