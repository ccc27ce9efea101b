"""Section 8 and what the whole run reports: every number recomputed from the saved models and the sample data."""
import csv
import html
import json
import math
import re
from dataclasses import replace
from statistics import median
from types import SimpleNamespace

import numpy as np
import pytest


# Definitions of section 8

@pytest.mark.parametrize("text, share", [
    ("раз два три четыре", 0.0), ("раз два", 0.0), ("а б в г д", 0.0), ("а б в г а б в г", 1 / 5), ("да " * 13, 9 / 10)])
def test_repeated_share_by_hand(nb, text, share):
    assert nb["repeated_share"](text) == pytest.approx(share)


def test_longest_copy_is_that_of_brute_force(nb):
    """Random texts of three letters and spaces with planted copies: the longest piece that begins with a word, wherever it stands."""
    random, longest = np.random.default_rng(0), []
    for case in range(40):
        source = "".join(random.choice(list("абв "), 300))
        text = "".join(random.choice(list("абвг "), 60))
        start, length, place = random.integers(0, 280), int(random.integers(15, 40)), random.integers(0, 60)
        text = text[:place] + source[start:start + length] + text[place:]
        words = [i for i in range(len(text)) if text[i] != " " and text[i - 1:i] in ("", " ")]
        pieces = {text[i:j] for i in words for j in range(i + 1, len(text) + 1) if text[i:j] in source}
        found = nb["longest_copy"](text, source)
        assert found in pieces and len(found) == max(map(len, pieces))
        longest.append(len(found))
    assert min(longest) < 15 < 25 < max(longest)
    assert nb["longest_copy"]("Потом листья летели по ветру вдруг", "Где-то листья летели по ветру.") == "листья летели по ветру"
    assert nb["longest_copy"]("икс", "Где-то") == ""


@pytest.mark.parametrize("continuation, whole, rest", [
    (" пошел домой. Он <b>спал</b>. И вот", " пошел домой. Он &lt;b&gt;спал&lt;/b&gt;.", "И вот"),
    ("?\n— Да!.. (Нет.) Потом", "?<br>— Да!.. (Нет.)", "Потом"), (" и «шел…» и шел", " и «шел…»", "и шел"),
    (" и шел", "", "и шел"), (" и пришел.", " и пришел.", None)])
def test_continuations_are_cut_at_the_last_whole_sentence(nb, monkeypatch, capsys, continuation, whole, rest):
    shown = []
    nb["show_continuation"]("Он <i>", continuation)
    assert capsys.readouterr().out.strip() == f"Он <i>{continuation}".strip()  # whole and plain outside a notebook
    monkeypatch.setitem(nb, "get_ipython", lambda: True)
    monkeypatch.setitem(nb, "display", lambda page: shown.append(page.data))
    nb["show_continuation"]("Он <i>", continuation)
    [page] = shown
    assert page.startswith(f"<p><b>Он &lt;i&gt;</b>{whole}<") and page.endswith("</p>")
    assert ("<small>" in page) == (rest is not None) and (rest is None or page.endswith(f"{rest}</small></p>"))


def test_saved_model_carries_its_decoding(nb, tiny, tokenizer, tmp_path):
    nb["save_model"](tiny, tokenizer, tmp_path, **nb["SAMPLING"], max_new_tokens=33)
    loaded, settings = nb["load_model"](tmp_path), json.loads((tmp_path / "generation_config.json").read_text())
    assert settings.items() >= {"use_cache": True, "max_new_tokens": 33, **nb["SAMPLING"]}.items()
    assert json.loads((tmp_path / "config.json").read_text())["use_cache"] is True and not list(tmp_path.glob("*.bin"))
    ids = nb["torch"].randint(4, 600, (1, 20))
    assert nb["torch"].allclose(loaded[0].eval()(ids).logits, tiny.eval()(ids).logits, atol=1e-4) and loaded[1].get_vocab() == tokenizer.get_vocab()


# The whole run

def pages(smoke) -> list[str]:
    return ["".join(output.get("data", {}).get("text/html", output.get("data", {}).get("text/markdown", output.get("text", ""))))
            for cell in smoke["cells"] for output in cell.outputs]


def table(smoke, *headers: str) -> list[list[str]]:
    """The rows of the last table that has these columns."""
    found = None
    for page in pages(smoke):
        rows = [[html.unescape(cell.replace("<br>", "\n")) for cell in re.findall(r"(?s)<t[hd][^>]*>(.*?)</t[hd]>", row)]
                for row in re.findall(r"(?s)<tr[^>]*>(.*?)</tr>", page)]
        found = rows[1:] if rows and {*headers} <= {*rows[0]} else found
    return found


@pytest.fixture(scope="module")
def parts(nb) -> dict[str, dict[str, str]]:
    """The sample's texts, cleaned and divided, as sections 1-3 do it."""
    works, _ = nb["load_corpus"]("data/sample", None)
    clean = {name: nb["clean_work"](raw) for name, raw in works.items()}
    split = nb["split_works"](clean)
    distinct, _ = nb["drop_repeats"](clean, split)
    return {part: {name: distinct[name] for name in sorted(distinct) if split[name] == part} for part in ("train", "validation", "test")}


@pytest.fixture(scope="module")
def run(nb, smoke, parts) -> SimpleNamespace:
    """The saved models of the run, its settings and its texts."""
    cfg = nb["make_config"]("smoke", artifacts_dir=str(smoke["folder"]))
    model, tokenizer = nb["load_model"](smoke["folder"] / "pretrain")
    return SimpleNamespace(cfg=cfg, model=model, tokenizer=tokenizer, metrics=smoke["metrics"], folder=smoke["folder"], **parts)


def test_tokenizer_is_the_better_one_of_the_training_texts(nb, run):
    candidates = [nb["train_tokenizer"](run.train.values(), run.cfg.vocab_size, byte_level) for byte_level in (False, True)]
    texts = [*run.validation.values()]
    fertility = [sum(map(len, texts)) / sum(len(nb["encode"]([text], candidate)[0]) for text in texts) for candidate in candidates]
    best = candidates[fertility.index(max(fertility))]
    assert run.metrics["tokenizer"] == {"vocab_size": len(best), "chars_per_token": pytest.approx(max(fertility))}
    saved = nb["AutoTokenizer"].from_pretrained(run.folder / "tokenizer")
    assert saved.get_vocab() == run.tokenizer.get_vocab() == best.get_vocab()
    text = next(iter(run.test.values()))
    assert nb["encode"]([text], saved) == nb["encode"]([text], best) == nb["encode"]([text], run.tokenizer)


def test_scores_of_the_first_stage_are_those_of_its_saved_model(nb, run, smoke):
    pretrain, length = run.metrics["pretrain"], run.cfg.context_length
    bits = {part: nb["bits_per_char"](run.model, run.tokenizer, getattr(run, part).values(), length) for part in ("test", "validation")}
    assert (pretrain["test_bpc"], pretrain["val_bpc"]) == pytest.approx((bits["test"], bits["validation"]), abs=2e-4)
    assert abs(bits["test"] - bits["validation"]) > 0.01  # so that swapped ones would show
    texts = [*run.test.values()]
    tokens = sum(map(len, nb["encode"](texts, run.tokenizer)))
    assert pretrain["test_nats_per_token"] == pytest.approx(bits["test"] * math.log(2) * sum(map(len, texts)) / tokens, abs=2e-4)
    assert pretrain["train_tokens"] == int(np.sum(nb["pack_texts"](run.train.values(), run.tokenizer, length)["attention_mask"][:]))
    assert (pretrain["params"], pretrain["epochs"], pretrain["batch_size"], pretrain["weight_decay"]) == (
        run.model.num_parameters(), run.cfg.epochs, run.cfg.batch_size, run.cfg.weight_decay)
    assert pretrain["tokens_per_s"] == pytest.approx(pretrain["train_tokens"] * pretrain["epochs"] / pretrain["train_s"])

    train_ids = np.concatenate(nb["encode"]([*run.train.values()], run.tokenizer))
    rows = {name: values for name, *values in table(smoke, "что предсказывает", "тест", "валидация")}
    for column, part in enumerate(("test", "validation")):
        text = "".join(getattr(run, part).values())
        expected = [nb["unigram_bpc"](train_ids, text, run.tokenizer), nb["compressor_bpc"]("".join(run.train.values()), text), bits[part]]
        assert [float(values[column]) for values in rows.values()] == pytest.approx(expected, abs=6e-4)
        if part == "test":
            assert [*pretrain["baselines"].values()] == pytest.approx(expected[:2])
    works = {name: nb["bits_per_char"](run.model, run.tokenizer, [text], length) for name, text in run.test.items()}
    assert {name: float(value) for name, _, value in table(smoke, "тестовое произведение")} == {
        name: pytest.approx(value, abs=6e-4) for name, value in works.items()}


def test_shown_continuations_and_copies_are_those_of_the_saved_model(nb, run, smoke):
    texts = nb["generate"](run.model, run.tokenizer, nb["TEST_PROMPTS"], run.cfg.max_new_tokens, run.cfg.seed, **nb["SAMPLING"])
    shown = [page for page in pages(smoke) if any(f"<p><b>{prompt}</b>" in page for prompt in nb["TEST_PROMPTS"])]
    plain = html.unescape(re.sub(r"<br><small>…оборвано: |</?\w+>|\s", "", "".join(shown)))
    for prompt, text in zip(nb["TEST_PROMPTS"], texts):
        assert re.sub(r"\s", "", prompt + text) in plain
    source = "\n".join(run.train.values())
    copies = [nb["longest_copy"](text, source) for text in texts]
    assert run.metrics["pretrain"]["longest_copy_chars_median"] == median(map(len, copies))
    assert [row[1:] for row in table(smoke, "промпт", "промпт есть в обучении")] == [
        ["да" if prompt in source else "нет", copy] for prompt, copy in zip(nb["TEST_PROMPTS"], copies)]

    sentences = [s for text in run.validation.values() for s in nb["split_sentences"](text) if len(s.split()) > 6]
    places = np.linspace(0, len(sentences) - 1, 100, dtype=int)
    openings = [" ".join(sentences[i].split()[:4]) for i in places]
    drawn = {t: nb["generate"](run.model, run.tokenizer, openings, run.cfg.max_new_tokens, run.cfg.seed, **nb["SAMPLING"] | {"temperature": t})
             for t in (0.6, 0.8, 1.0)}
    mean, joined = round(np.mean([len(text) for text in drawn[0.8]])), "".join(run.test.values())
    repeated = {f"temperature {t}": texts for t, texts in drawn.items()} | {"сами книги": ["".join(sentences[i:i + 40])[:mean] for i in places]}
    assert table(smoke, "доля повторных четвёрок слов") == [
        [name, f"{np.mean([nb['repeated_share'](text) for text in texts]):.1%}", texts[0][:150]] for name, texts in repeated.items()]
    size, whole = round(np.mean([len(text) for text in texts])), len(joined)
    control = [len(nb["longest_copy"](joined[i:i + size], source)) for i in np.linspace(0, 0.9 * whole, len(texts), dtype=int)]
    assert any(f": {median(map(len, copies)):.0f} символов у продолжений, {median(control):.0f} у отрывков" in page for page in pages(smoke))


def test_differences_of_the_prepared_runs_are_to_the_first_of_their_group(run, smoke):
    """The table of runs as it lies in artifacts/, and this run at its end."""
    with open("artifacts/ablations.csv", encoding="utf-8") as file:
        runs = [row for row in csv.DictReader(file) if row["shown"] == "1"]
    first = {row["group"]: float(row["val_bpc"]) for row in reversed(runs)}
    expected = [[row["change"], row["epochs"], float(row["val_bpc"]), float(row["val_bpc"]) - first[row["group"]]] for row in runs]
    bits = run.metrics["pretrain"]["val_bpc"]
    expected.append(["этот прогон", str(run.cfg.epochs), bits, bits - first["16 слоёв"]])
    shown = [row[1:5] for row in table(smoke, "что изменено", "эпох", "бит на символ", "разница", "коммит")]
    assert [row[:2] for row in shown] == [row[:2] for row in expected] and len(first) > 1
    for (*_, bits, difference), (*_, value, distance) in zip(shown, expected):
        assert float(bits) == pytest.approx(value, abs=6e-4)
        assert difference == "основа" if distance == 0 else float(difference) == pytest.approx(distance, abs=6e-5)


def nats_of(nb, model, tokenizer, answers: list[str]) -> float:
    """Nats per token of answers to the four questions."""
    rows = [nb["to_dialogue"]({"instruction": q, "input": "", "output": a}) for q, a in zip(nb["QUESTIONS_RUS"], answers)]
    rows = nb["tokenize_dialogues"]({name: [row[name] for row in rows] for name in ("prompt", "completion")}, tokenizer)
    nats = [nb["torch"].nn.functional.cross_entropy(model.eval()(nb["torch"].tensor([ids])).logits[0, :-1], nb["torch"].tensor(labels)[1:], reduction="sum").item()
            for ids, labels in zip(rows["input_ids"], rows["labels"])]
    return sum(nats) / sum(label != -100 for labels in rows["labels"] for label in labels)


def test_answers_and_checks_of_the_second_stage_stand_where_they_belong(nb, run, smoke):
    """The answers said to come after SFT are likelier to the tuned model, those before to the base one; tables and metrics agree."""
    sft, answers = run.metrics["sft"], {when: [row[when] for row in run.metrics["sft"]["answers"]] for when in ("before", "after")}
    nb["transformers"].set_seed(run.cfg.seed)
    models = {when: nb["load_chat_model"](run.folder / stage) for when, stage in (("before", "pretrain"), ("after", "sft"))}
    nats = {(whose, when): nats_of(nb, *models[whose], answers[when]) for whose in models for when in answers}
    assert nats["after", "after"] < nats["before", "after"] - 0.1 and nats["before", "before"] < nats["after", "before"] - 0.1
    shown = [text for *_, text in table(smoke, "вопрос", "когда", "ответ")]
    assert shown[0::2] == answers["before"] and shown[1::2] == answers["after"]
    assert [text for _, text in table(smoke, "вопрос", "начало ответа до SFT")] == [text[:300] for text in answers["before"]]

    columns = ("before_greedy", "after_greedy", "before", "after")
    assert sft["checks"]["before"] != sft["checks"]["before_greedy"]  # so that swapped columns would show
    for name, *cells in table(smoke, "проверка", "до, жадно", "после, жадно", "до, случайно", "после, случайно"):
        key = "ended" if name == "завершён сам" else next(key for key, (label, _) in nb["CHECKS"].items() if label == name)
        assert [cell.split(" ")[0] for cell in cells[:4]] == [f"{sft['checks'][run_][key]:.0%}" for run_ in columns]
    assert any(f"до SFT {sft['eval_loss_before']:.3f}, после {sft['eval_loss_after']:.3f}" in page for page in pages(smoke))
    rows = nb["split_rows"](nb["open_rows"](run.cfg.sft_dataset), run.cfg.sft_held_out, run.cfg.seed)["test"]
    dialogues = {str(row["prompt"]): row for row in map(nb["to_dialogue"], rows)}
    questions = [row["prompt"] for row in dialogues.values()]
    assert sft["held_out"] == len(questions)
    for key, decoding in (("after_greedy", nb["GREEDY"]), ("after", nb["ANSWERING"])):  # the saved weights are rounded to bf16
        again = nb["check"](nb["answer"](*models["after"], questions, run.cfg.max_answer_tokens, **decoding)).mean().astype(float)
        assert np.abs(again.to_numpy() - [*sft["checks"][key].values()]).mean() < 0.2


def test_saved_models_decode_as_the_run_did(nb, run):
    settings = {stage: json.loads((run.folder / stage / "generation_config.json").read_text()) for stage in ("pretrain", "sft")}
    assert settings["pretrain"].items() >= {**nb["SAMPLING"], "max_new_tokens": run.cfg.max_new_tokens}.items()
    assert settings["sft"].items() >= {**nb["ANSWERING"], "max_new_tokens": run.cfg.max_answer_tokens}.items()
    assert settings["sft"]["eos_token_id"] == nb["AutoTokenizer"].from_pretrained(run.folder / "sft").convert_tokens_to_ids("<|im_end|>")


def test_the_last_section_asks_the_saved_models(nb, run, smoke):
    output = "".join(page for page in pages(smoke) if "Как заварить чай?" in page)
    start, question = "Поздно вечером в гостиную вошел", "Как заварить чай?"
    continued = nb["generate"](run.model, run.tokenizer, [start], run.cfg.max_new_tokens, 0, **nb["SAMPLING"])[0]
    model, tokenizer = nb["load_model"](run.folder / "sft")
    replied = nb["generate"](model, tokenizer, nb["chats"]([question]), run.cfg.max_answer_tokens, 0, **nb["ANSWERING"])[0]
    assert start + continued in output and replied in output and replied


def test_training_with_the_runs_settings_gives_its_scores(nb, run, tmp_path):
    """The teachers first, each from its own seed, then the student that learns from all of them."""
    train, validation = (nb["pack_texts"](texts.values(), run.tokenizer, run.cfg.context_length) for texts in (run.train, run.validation))
    cfg, hardware = replace(run.cfg, artifacts_dir=tmp_path), nb["inspect_hardware"]()
    lesson = (hardware, run.tokenizer, train, validation, sum(map(len, run.validation.values())))
    scores, spoken, reported = [], [], run.metrics["pretrain"]["teacher"]
    for seed in range(cfg.seed + 1, cfg.seed + 1 + cfg.teachers):
        smaller = replace(cfg, num_hidden_layers=cfg.teacher_layers, epochs=cfg.teacher_epochs, seed=seed)
        nb["transformers"].set_seed(seed)
        teacher = nb["pretrain"](nb["build_model"](smaller, run.tokenizer), smaller, *lesson, stage="teacher")
        scores.append(min(nb["history"](teacher, "eval_bpc")))
        spoken.append(nb["ask_teacher"](teacher.model, train, hardware, seed, 64 // cfg.teachers))
    assert reported["val_bpc"] == pytest.approx(scores, rel=1e-3) and len({*scores}) == cfg.teachers
    assert (reported["params"], reported["epochs"], reported["count"]) == (teacher.model.num_parameters(), cfg.teacher_epochs, cfg.teachers)
    nb["transformers"].set_seed(cfg.seed)
    student = nb["pretrain"](nb["build_model"](cfg, run.tokenizer), cfg, *lesson, taught=nb["torch"].cat(spoken, -1))
    assert run.metrics["pretrain"]["val_bpc"] == pytest.approx(min(nb["history"](student, "eval_bpc")), rel=2e-3)
