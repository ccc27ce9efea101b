"""Sections 9-12: dialogues, checks on answers, SFT and its scores; a tiny model learns a few answers by heart."""
import json
import math
from dataclasses import replace

import pytest
from conftest import run_sections

ROW = {"instruction": "Назови три реки.", "input": "", "output": "Волга, Обь, Лена."}
LESSONS = [("Назови реку.", "Волга."), ("Назови город.", "Москва, столица."), ("Кто там?", "Это я.\nОткрой дверь."), ("Как дела?", "Хорошо.")]


# Rows and dialogues

def test_dialogue_without_input_has_no_system_message(nb):
    for empty in ("", "  ", None):
        assert nb["to_dialogue"](ROW | {"input": empty}) == {
            "prompt": [{"role": "user", "content": "Назови три реки."}],
            "completion": [{"role": "assistant", "content": "Волга, Обь, Лена."}]}


def test_input_becomes_the_system_message(nb):
    assert nb["to_dialogue"](ROW | {"input": "Отвечай кратко."})["prompt"] == [
        {"role": "system", "content": "Отвечай кратко."}, {"role": "user", "content": "Назови три реки."}]


def test_unusable_rows_and_repeats_are_dropped(nb):
    rows = nb["Dataset"].from_list([ROW, ROW | {"output": None}, ROW | {"output": " \n"}, ROW | {"instruction": ""}, ROW,
                                    ROW | {"input": "Кратко."}, ROW | {"output": "Нева."}] + [ROW | {"instruction": f"Вопрос {n}"} for n in range(20)])
    parts = nb["split_rows"](rows, 1, seed=1)
    kept = [row for part in parts.values() for row in part if "Вопрос" not in row["instruction"]]
    assert kept == [ROW, ROW | {"input": "Кратко."}, ROW | {"output": "Нева."}] and sum(parts.num_rows.values()) == 23
    with pytest.raises(ValueError, match="SFT_DATASET"):
        nb["split_rows"](rows.select([1, 2, 3]), 1, seed=1)


def test_split_never_divides_an_instruction(nb):
    rows = nb["Dataset"].from_list([ROW | {"instruction": f"Вопрос {n % 60}" if n % 2 else f" вопрос  {n % 60} ", "output": str(n)}
                                    for n in range(300)] + [ROW | {"instruction": f"ВОПРОС {n}"} for n in range(60)])
    parts = nb["split_rows"](rows, 20, seed=1)
    keys = {name: {" ".join(text.lower().split()) for text in part["instruction"]} for name, part in parts.items()}
    assert len(keys["test"] | keys["validation"] | keys["train"]) == sum(map(len, keys.values())) == 60
    assert sum(map(len, parts.values())) == 360 and 20 <= len(parts["test"]) < 26 and 14 < len(parts["validation"]) < 26


def test_split_follows_the_seed_and_takes_at_most_a_tenth(nb):
    rows = nb["Dataset"].from_list([ROW | {"instruction": f"Вопрос {n}"} for n in range(100)])
    first, again, other = (nb["split_rows"](rows, 500, seed=seed)["test"]["instruction"][:] for seed in (1, 1, 2))
    assert first == again != other and len(first) == 10
    with pytest.raises(ValueError, match="отложить"):
        nb["split_rows"](rows.select([0, 0, 1, 1]), 500, seed=1)


# The template

@pytest.fixture(scope="module", params=["буквы", "байты"])
def base(request, nb, sample_texts, tmp_path_factory):
    """A folder with an untrained model of the first stage, for both alphabets between which section 4 chooses."""
    tokenizer = nb["train_tokenizer"](sample_texts, 600, request.param == "байты")
    nb["torch"].manual_seed(1)
    folder = tmp_path_factory.mktemp("base")
    nb["build_model"](nb["make_config"]("smoke"), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chat(nb, base):
    nb["torch"].manual_seed(1)
    return nb["load_chat_model"](str(base))


def test_template_renders_nothing_of_its_own(chat, nb):
    dialogue = nb["to_dialogue"](ROW | {"input": "Кратко."})
    assert chat[1].apply_chat_template(dialogue["prompt"], tokenize=False, add_generation_prompt=True) == (
        "<|im_start|>system\nКратко.<|im_end|>\n<|im_start|>user\nНазови три реки.<|im_end|>\n<|im_start|>assistant\n")


def test_chat_tokens_are_single_and_the_embeddings_follow(chat):
    model, tokenizer = chat
    assert [tokenizer.decode(ids) for ids in tokenizer(["<|im_start|>", "<|im_end|>", "assistant"], add_special_tokens=False).input_ids
            if len(ids) == 1] == ["<|im_start|>", "<|im_end|>", "assistant"]
    assert model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def tokenized(nb, tokenizer, rows: list[dict]):
    dialogues = nb["Dataset"].from_list([nb["to_dialogue"](row) for row in rows])
    return dialogues.map(nb["tokenize_dialogues"], batched=True, remove_columns=["prompt", "completion"], fn_kwargs={"tokenizer": tokenizer})


def test_the_loss_covers_the_answer_and_its_end_alone(chat, nb):
    tokenizer, rows = chat[1], [ROW, ROW | {"input": "Кратко.", "output": "\nДа.\n"}]
    for row, shown in zip(rows, tokenized(nb, tokenizer, rows)):
        prompt = tokenizer.apply_chat_template(nb["to_dialogue"](row)["prompt"], add_generation_prompt=True, return_dict=False)
        assert shown["input_ids"][:len(prompt)] == prompt and shown["labels"][:len(prompt)] == [-100] * len(prompt)
        assert shown["labels"][len(prompt):] == shown["input_ids"][len(prompt):]
        assert tokenizer.decode(shown["labels"][len(prompt):]) == row["output"] + "<|im_end|>"
        assert len(shown["input_ids"]) == len(shown["labels"])


def test_markers_in_a_row_stay_text(chat, nb):
    row = ROW | {"instruction": "Что значит <|im_end|>?", "output": "<|im_start|>system — начало реплики."}
    ids = tokenized(nb, chat[1], [row])[0]["input_ids"]
    assert [ids.count(chat[1].convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")] == [2, 2]


# Checks on answers

@pytest.mark.parametrize("text", [
    "Извините, но я не могу помочь с этим.", "Не могу выполнить запрос.", "Извините. Я не могу ответить.", "Привет! Я не смогу нарисовать.",
    "Как языковая модель, я не могу спать.", "К сожалению, я не могу рисовать, но опишу картину. " + "Вот она. " * 100,
    "Простите, но мне это неизвестно.", "Я могу многое, но не могу исполнять код."])
def test_a_refusal_in_the_first_sentence_at_any_length(nb, text):
    assert nb["re"].match(nb["REFUSAL"], text)
    assert not nb["check"](nb["pd"].DataFrame({"answer": [text], "ended": [True]}))["без отказа"][0]


@pytest.mark.parametrize("text", [
    "Рыбы не могут жить без воды.", "Сначала выучите слова. Без них я не могу ничего посоветовать.", "Он сказал: «Я не могу».",
    "Извинитесь перед другом.", "Можно ли простить? Да."])
def test_no_refusal(nb, text):
    assert not nb["re"].match(nb["REFUSAL"], text)


@pytest.mark.parametrize("text, words", [
    ("Восемь планeta.", ["планeta"]), ("Учитесь gradually.", ["gradually"]), ("Это 檬檬 лимон.", ["檬檬"]), ("Слово кoт.", ["кoт"]),
    ("Смотрите YouTube, читайте BBC, пишите на x@mail.ru и www.ru.", []), ("Слово «apple» (яблоко, apple) и \"pear\".", []),
    ("Угол α, ряд x, y и z, IT-отдел.", []), ("Вот:\n```python\nprint(x)\n```\nи `len(x)`, $x = abs$.", []), ("Он сказал «кoт».", ["кoт"])])
def test_foreign_words(nb, text, words):
    assert nb["foreign_words"](text) == words


def test_russian_share(nb):
    assert nb["russian_share"]("{12, 2}") == 1.0 and nb["russian_share"]("Смотрите YouTube") == pytest.approx(8 / 15)
    assert nb["russian_share"]("Вот так:\n```python\nprint(x)\n```\nи `len(x)`, где $x = y_1$.") == 1.0
    assert nb["russian_share"]("От $10 in the USA до $20 за штуку") < 1.0  # prices are no formula


@pytest.mark.parametrize("text, loop", [
    ("слово " * 60, True), ("\n".join(f"{n}. Учите новые слова" for n in range(9)), True),
    ("Один раз утром серый зайчик вышел из леса погулять у реки. " * 2, True),
    ("Раз, два, три, четыре, пять, вышел зайчик погулять.", False), ("Да.", False), ("1000000000 и ------------", False)])
def test_loops(nb, text, loop):
    assert nb["CHECKS"]["no_loops"][1](text) is not loop


def test_checks_together(nb):
    def verdict(text, ended=True):
        return nb["check"](nb["pd"].DataFrame({"answer": [text], "ended": [ended]})).loc[0].astype(bool).tolist()
    assert verdict("Сначала выучи слова, потом говори.") == [True] * 6
    assert verdict("Сначала выучи слова", ended=False) == [False] + [True] * 5
    assert verdict("Learn The Words First") == [True, False, True, True, True, True]
    assert verdict("Слова: The Sun And The Moon")[1] is False and verdict("Смотрите хорошие фильмы и сериалы на YouTube")[1] is True
    assert verdict("Ответ.\nassistant\nЕще один ответ на этот самый вопрос.")[4] is False
    assert verdict("Вот ответ.<|im_start|> И еще один")[4] is False and verdict("Вызовите `system` в коде")[4] is True


def test_wilson(nb):
    assert nb["wilson"](0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert nb["wilson"](49, 50) == pytest.approx((0.8950, 0.9965), abs=1e-4)
    assert nb["wilson"](5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = nb["wilson"](nb["pd"].Series([0, 5]), 10)  # a whole table at once
    assert [*low, *high] == pytest.approx([0, 0.2366, 0.2775, 0.7634], abs=1e-4)


# Training

def by_hand(nb, model, rows) -> tuple[float, float]:
    """Nats per answer token and the share of guessed ones, row by row without a trainer."""
    nats, hits, count = 0.0, 0, 0
    model.eval()
    with nb["torch"].no_grad():
        for row in rows:
            logits = model(nb["torch"].tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for i, label in enumerate(row["labels"][1:]):
                if label != -100:
                    nats, hits, count = nats - logits[i, label].item(), hits + int(logits[i].argmax() == label), count + 1
    return nats / count, hits / count


@pytest.fixture(scope="module")
def learnt(nb, base, tmp_path_factory):
    """A model that was taught four short answers by the notebook's own trainer; (model, tokenizer, dialogues, trainer, cfg, first scores)."""
    nb["torch"].manual_seed(1)
    model, tokenizer = nb["load_chat_model"](str(base))
    rows = tokenized(nb, tokenizer, [{"instruction": q, "input": "", "output": a} for q, a in LESSONS])
    untrained = by_hand(nb, model, rows)
    dialogues = nb["DatasetDict"]({"train": rows.select([0, 1, 2, 3] * 5), "validation": rows})
    cfg = replace(nb["make_config"]("smoke", artifacts_dir=str(tmp_path_factory.mktemp("sft"))),
                  sft_batch_size=4, sft_epochs=16, sft_learning_rate=3e-3, sft_max_length=100, device_batch=2)
    trainer = nb["make_sft_trainer"](model, tokenizer, dialogues, cfg, nb["Hardware"]("CPU", False, "fp32", False, 8.0))
    nb["resume"](trainer)
    return model, tokenizer, dialogues, trainer, cfg, untrained


def test_a_trained_model_answers_and_stops_by_itself(nb, learnt):
    model, tokenizer = learnt[:2]
    answers = nb["answer"](model, tokenizer, nb["chats"]([question for question, _ in LESSONS]), 40, **nb["GREEDY"])
    assert list(zip(answers["question"], answers["answer"])) == LESSONS and answers["ended"].all()
    longest = len(tokenizer(LESSONS[2][1], add_special_tokens=False).input_ids)
    cut = nb["answer"](model, tokenizer, nb["chats"]([LESSONS[2][0], LESSONS[0][0]]), longest - 1, **nb["GREEDY"])
    assert cut["ended"].tolist() == [False, True] and cut["answer"][1] == "Волга."


def test_the_recipe_reaches_the_trainer(nb, learnt):
    *_, trainer, cfg, _ = learnt
    assert trainer.state.global_step == cfg.sft_epochs * 20 // cfg.sft_batch_size and trainer.args.per_device_train_batch_size == 2
    rates = nb["history"](trainer, "learning_rate")
    first, *rates = rates
    assert first == 0 < max(rates) <= cfg.sft_learning_rate and rates[-1] < 0.2 * max(rates) and sorted(rates, reverse=True) == rates
    assert len(nb["history"](trainer, "epoch_seconds")) == len(nb["history"](trainer, "eval_loss")) - 1 == cfg.sft_epochs


def test_evaluations_before_and_after_are_those_of_the_answers_tokens(nb, learnt):
    """The four dialogues are one batch, so the trainer's averages are those over all answer tokens."""
    model, _, dialogues, trainer, _, untrained = learnt
    losses, accuracies = (nb["history"](trainer, key) for key in ("eval_loss", "eval_mean_token_accuracy"))
    assert (losses[0], accuracies[0]) == pytest.approx(untrained, rel=1e-3)
    best = losses.index(min(losses))
    assert best > 0 and (losses[best], accuracies[best]) == pytest.approx(by_hand(nb, model, dialogues["validation"]), rel=1e-3)


def test_the_best_epoch_is_kept(nb, base, tmp_path):
    nb["torch"].manual_seed(1)
    model, tokenizer = nb["load_chat_model"](str(base))
    train, other = (tokenized(nb, tokenizer, [ROW | {"output": output}]) for output in ("Волга, Обь, Лена.", "Москва и Казань, два города."))
    cfg = replace(nb["make_config"]("smoke", artifacts_dir=str(tmp_path)), sft_batch_size=4, sft_epochs=8, sft_learning_rate=3e-3)
    trainer = nb["make_sft_trainer"](model, tokenizer, nb["DatasetDict"]({"train": train.select([0] * 8), "validation": other}), cfg,
                                     nb["Hardware"]("CPU", False, "fp32", False, 8.0))
    losses = nb["history"](nb["resume"](trainer), "eval_loss")
    assert min(losses) < losses[-1] - 0.01 and by_hand(nb, model, other)[0] == pytest.approx(min(losses), abs=1e-3)


def test_a_loss_that_is_no_number_stops_sft(nb, base, tmp_path):
    model, tokenizer = nb["load_chat_model"](str(base))
    rows = tokenized(nb, tokenizer, [ROW])
    cfg = replace(nb["make_config"]("smoke", artifacts_dir=str(tmp_path)), sft_batch_size=1, sft_epochs=12, sft_learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        nb["resume"](nb["make_sft_trainer"](model, tokenizer, nb["DatasetDict"]({"train": rows, "validation": rows}), cfg,
                                            nb["Hardware"]("CPU", False, "fp32", False, 8.0)))


def test_another_run_has_another_folder(nb, base, tmp_path):
    def folder(output: str, **changes) -> str:
        nb["torch"].manual_seed(1)
        model, tokenizer = nb["load_chat_model"](str(base))
        rows = tokenized(nb, tokenizer, [ROW | {"output": output}])
        cfg = replace(nb["make_config"]("smoke", artifacts_dir=str(tmp_path)), **changes)
        return nb["make_sft_trainer"](model, tokenizer, nb["DatasetDict"]({"train": rows, "validation": rows}), cfg,
                                      nb["Hardware"]("CPU", False, "fp32", False, 8.0)).args.output_dir
    first = folder("Да.")
    assert folder("Да.") == folder("Да.", device_batch=1) == first
    assert len({first, folder("Не."), folder("Да.", sft_learning_rate=1e-4), folder("Да.", sft_epochs=2), folder("Да.", seed=5),
                folder("Да.", sft_batch_size=4), folder("Да.", sft_max_length=200)}) == 7


def test_stray_markup_stays_in_the_answer(nb, chat, monkeypatch):
    ids = chat[1].convert_tokens_to_ids(["<|im_start|>", "user"])
    monkeypatch.setitem(nb, "generate_ids", lambda *args, **decoding: [ids])
    assert nb["answer"](*chat, nb["chats"](["Кто там?"]), 9)["answer"][0].replace(" ", "") == "<|im_start|>user"


def test_a_bf16_training_leaves_scores_and_generation_as_they_were(nb, base, tmp_path):
    nb["torch"].manual_seed(3)
    model, tokenizer = nb["load_chat_model"](str(base))
    rows = tokenized(nb, tokenizer, [ROW, ROW | {"output": "Нева."}])
    cfg = replace(nb["make_config"]("smoke", artifacts_dir=str(tmp_path)), sft_batch_size=2, sft_epochs=1, sft_learning_rate=0.0)
    before = by_hand(nb, model, rows)
    trainer = nb["make_sft_trainer"](model, tokenizer, nb["DatasetDict"]({"train": rows, "validation": rows}), cfg,
                                     nb["Hardware"]("CPU", False, "bf16", False, 8.0))
    nb["resume"](trainer)
    assert by_hand(nb, model, rows) == pytest.approx(before, abs=1e-6)  # nothing was learnt, and no autocast is left
    assert nb["history"](trainer, "eval_loss")[0] != pytest.approx(before[0], abs=1e-6)  # that one was in bf16


# The whole run

def test_reported_scores_are_those_of_the_saved_models(nb, smoke):
    sft, torch = smoke["metrics"]["sft"], nb["torch"]
    cfg = nb["make_config"]("smoke", artifacts_dir=str(smoke["folder"]))
    parts = nb["split_rows"](nb["open_rows"](cfg.sft_dataset), cfg.sft_held_out, cfg.seed)
    assert len(parts["validation"]) == 8  # one batch of the trainer's evaluation
    nb["transformers"].set_seed(cfg.seed)
    models = {"before": nb["load_chat_model"](cfg.sft_model), "after": nb["load_chat_model"](str(smoke["folder"] / "sft"))}
    for when, (model, tokenizer) in models.items():
        rows = tokenized(nb, tokenizer, parts["validation"].to_list())
        nats, hits = by_hand(nb, model, rows)
        assert sft[f"eval_loss_{when}"] == pytest.approx(nats, abs=0.02)  # the saved weights are bf16
    assert sft["token_accuracy"] == pytest.approx(hits, abs=0.02) and sft["eval_loss_after"] < sft["eval_loss_before"] - 0.1
    assert sft["rows"] == len(parts["train"]) and sft["epochs"] == cfg.sft_epochs and sft["stand_in"] is True
    again = nb["answer"](*models["before"], nb["chats"](nb["QUESTIONS_RUS"]), cfg.max_answer_tokens, **nb["ANSWERING"])
    assert [row["before"] for row in sft["answers"]] == again["answer"].tolist() != [row["after"] for row in sft["answers"]]
    assert [row["question"] for row in sft["answers"]] == nb["QUESTIONS_RUS"]
    held = {str(row["prompt"]): row for row in map(nb["to_dialogue"], parts["test"])}
    assert sft["held_out"] == len(held)
    for run, decoding in (("before_greedy", nb["GREEDY"]), ("before", nb["ANSWERING"])):
        answers = nb["answer"](*models["before"], [row["prompt"] for row in held.values()], cfg.max_answer_tokens, **decoding)
        assert list(sft["checks"][run].values()) == pytest.approx(nb["check"](answers).mean().astype(float).tolist())


def test_the_loss_mask_is_shown_escaped(smoke):
    """What the loss does not cover stands before the mark, the answer and its end marker in it."""
    pages = [output.get("data", {}).get("text/html", "") for cell in smoke["cells"] for output in cell.outputs]
    [page] = [page for page in pages if "<mark>" in page]
    before, marked = page.split("<mark>")
    assert before.startswith("<p>&lt;|im_start|&gt;user↵<br>") and before.endswith("&lt;|im_end|&gt;↵<br>&lt;|im_start|&gt;assistant↵<br>")
    assert marked.endswith("&lt;|im_end|&gt;</mark></p>") and marked.count("im_end") == 1


def test_reported_checks_are_shares(smoke):
    checks, asked = smoke["metrics"]["sft"]["checks"], smoke["metrics"]["sft"]["held_out"]
    assert set(checks) == {"before_greedy", "before", "after_greedy", "after"}
    for shares in checks.values():
        assert {"ended", "russian", "no_loops"} <= set(shares)
        assert all(math.isclose(share * asked, round(share * asked), abs_tol=1e-6) for share in shares.values())
    assert checks["before_greedy"] != checks["before"]  # a tiny model loops without sampling


def test_the_stand_in_is_named_where_its_outputs_are_shown(smoke):
    said = [cell for cell in smoke["cells"] if any("Выполнено на замене" in str(output.get("data", output)) for output in cell.outputs)]
    assert len(said) == 4  # sections 9-12


def test_refusals_and_long_dialogues_leave_the_training_part(notebook, base, tmp_path):
    """Rows that open with a refusal leave the training part alone, those longer than `sft_max_length` all of them, uncut."""
    outputs = ["Извините, но я не могу. Вот что.", "Да.", "Очень долго. " * 400]
    rows = [{"input": "", "instruction": f"Вопрос {n}", "output": outputs[n % 3]} for n in range(90)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    run = run_sections(notebook, {0, 9, 10}, tmp_path, SFT_MODEL=base, SFT_DATASET=tmp_path / "rows.jsonl", script=(
        "kinds = [[sum(row['completion'][0]['content'].startswith(start) for row in part) for part in dialogues.values()] for start in ('Извините', 'Да', 'Очень')]\n"
        "print(json.dumps([kinds, int(refused.sum()), [*fitting.num_rows.values()], lengths.max() <= cfg.sft_max_length, len(lengths)], default=bool))"))
    (apologies, short, long), refused, fitting, fits, counted = json.loads(run.stdout.splitlines()[-1])
    assert apologies[0] == 0 < apologies[1] + apologies[2] == 30 - refused and sum(short) == sum(long) == 30 and long[0] > 0, run.stderr
    assert fitting == [a + b for a, b in zip(apologies, short)] and fits and counted == fitting[0]
