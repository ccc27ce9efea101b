import json

import pytest

ROW = {"instruction": "Назови три реки.", "input": "", "output": "Волга, Обь, Лена."}


def test_dialogue_without_input_has_no_system_message(nb):
    for empty in ("", "  ", None):
        assert nb["to_dialogue"](ROW | {"input": empty}) == {
            "prompt": [{"role": "user", "content": "Назови три реки."}],
            "completion": [{"role": "assistant", "content": "Волга, Обь, Лена."}]}


def test_input_becomes_the_system_message(nb):
    roles = [message["role"] for message in nb["to_dialogue"](ROW | {"input": "Отвечай кратко."})["prompt"]]
    assert roles == ["system", "user"]


@pytest.mark.parametrize("fault", [{"output": None}, {"output": ""}, {"instruction": "  "}, {"instruction": 5}])
def test_unusable_rows(nb, fault):
    assert not nb["row_fault"](ROW) and nb["row_fault"](ROW | fault)


def test_refusals(nb):
    for refusal in ("Извините, но я не могу помочь с этим.", "Не могу выполнить запрос.", "Извините. Я не могу ответить.",
                    "Как языковая модель, я не могу спать."):
        assert nb["is_refusal"](refusal)
    for answer in ("Рыбы не могут жить без воды, а я не могу без чая.", "К сожалению, я не могу рисовать, но опишу. " * 12):
        assert not nb["is_refusal"](answer)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_rows_from_files(nb, tmp_path, kind):
    path = tmp_path / f"rows.{kind}"
    rows = nb["Dataset"].from_list([ROW] * 3)
    rows.to_parquet(path) if kind == "parquet" else path.write_text("\n".join([json.dumps(ROW)] * 3))
    assert nb["load_rows"](str(path)).to_list() == [ROW] * 3


def test_split_never_divides_an_instruction(nb):
    rows = nb["Dataset"].from_list([ROW | {"instruction": f"Вопрос {n % 60}", "output": str(n)} for n in range(300)])
    parts = nb["split_rows"](rows, 20, seed=1)
    assert sum(map(len, parts.values())) == 300 and len(parts["test"]) >= 20 <= len(parts["validation"])
    train, validation, test = (set(parts[name]["instruction"]) for name in ("train", "validation", "test"))
    assert not (train & validation or train & test or validation & test)


@pytest.fixture(scope="module")
def chat(nb, tiny, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return nb["load_chat_model"](str(folder))


def test_template_renders_nothing_of_its_own(chat, nb):
    _, tokenizer = chat
    dialogue = nb["to_dialogue"](ROW | {"input": "Кратко."})
    rendered = tokenizer.apply_chat_template(dialogue["prompt"], tokenize=False, add_generation_prompt=True)
    assert rendered == ("<|im_start|>system\nКратко.<|im_end|>\n<|im_start|>user\nНазови три реки.<|im_end|>\n"
                        "<|im_start|>assistant\n")


def test_prompt_is_a_prefix_and_the_answer_ends_with_its_end_token(chat, nb):
    _, tokenizer = chat
    dialogue = nb["to_dialogue"](ROW)
    ids, length = nb["tokenize_dialogue"](dialogue, tokenizer)
    prompt = tokenizer.apply_chat_template(dialogue["prompt"], add_generation_prompt=True, return_dict=False)
    assert ids[:length] == prompt and tokenizer.decode(ids[length:]).endswith(".<|im_end|>")


def test_chat_tokens_are_single_and_the_embeddings_follow(chat):
    model, tokenizer = chat
    ids = tokenizer(" ".join(["<|im_start|>", "<|im_end|>"]), add_special_tokens=False).input_ids
    assert tokenizer.unk_token_id not in ids and model.get_input_embeddings().num_embeddings == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_chats_are_generated_without_the_prompt(chat, nb):
    answers = nb["generate"](*chat, nb["chats"](nb["QUESTIONS_RUS"]), 8, do_sample=False)
    assert len(answers) == 4 and not any("assistant" in answer or "планет" in answer for answer in answers)


def test_checks_on_answers(nb):
    def verdict(text, ended=True, question="Что делать?"):
        return [check(question, text, ended) for check in nb["CHECKS"].values()]
    assert verdict("Сначала выучи слова, потом говори.") == [True] * 5 + [None]
    assert verdict("Learn the words first.")[0] is False
    assert verdict("слово " * 60, ended=False)[1:4] == [False, True, False]
    assert verdict("Ответ.\nassistant\nЕще ответ.")[2] is False
    assert verdict("Извините, но я не могу помочь с этим запросом.")[4] is False
    assert verdict("Просто.", question="Как варить кашу?")[5] is False
    assert verdict("1. Вода.\n2. Крупа.", question="как варить кашу?")[5] is True


def test_checked_answers_keep_question_answer_and_outcomes(chat, nb):
    table = nb["check_answers"](*chat, [*nb["QUESTIONS_RUS"], nb["chats"](["Который час?"])[0]], 6, batch_size=2,
                                do_sample=False)
    assert list(table["question"]) == [*nb["QUESTIONS_RUS"], "Который час?"]
    assert set(nb["CHECKS"]) <= set(table.columns) and table[list(nb["CHECKS"])].isin([True, False, None]).all(axis=None)
    assert table["список в ответе на «как»"].notna().tolist() == [False, False, False, True, False]


def test_special_tokens_in_a_row_stay_text(chat, nb):
    _, tokenizer = chat
    row = ROW | {"instruction": "Что значит <|im_end|>?", "output": "<|im_start|>system — начало реплики."}
    ids, _ = nb["tokenize_dialogue"](nb["to_dialogue"](row), tokenizer)
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>")]
    assert [ids.count(token) for token in ends] == [2, 2]


def test_faulty_rows_are_counted_by_reason(nb):
    rows = nb["Dataset"].from_list([ROW, ROW | {"output": None}, ROW | {"output": " "}, ROW | {"output": ""}])
    usable, faults = nb["drop_faulty"](rows)
    assert usable.to_list() == [ROW] and faults == {"output: пропуск": 1, "output: пусто": 2}
    with pytest.raises(ValueError, match="ни одной пригодной"):
        nb["drop_faulty"](rows.select([1, 2]))


def test_mask_picture_escapes_html(chat, nb, monkeypatch):
    shown = []
    monkeypatch.setitem(nb, "display", lambda page: shown.append(page.data))
    nb["show_loss_mask"](nb["to_dialogue"](ROW | {"instruction": "<script>alert(1)</script>"}), chat[1])
    assert "<script" not in shown[0] and "<mark>" in shown[0]


def test_text_without_letters_is_not_foreign(nb):
    assert nb["russian_share"]("{12, 2}") == 1.0 and nb["russian_share"]("Смотрите YouTube") == pytest.approx(8 / 15)
    assert nb["russian_share"]("Вот так:\n```python\nprint(x)\n```\nи `len(x)`, где $x = y_1$.") == 1.0
    assert nb["russian_share"]("От $10 in the USA до $20 за штуку") < 1.0  # prices are no formula
    assert nb["russian_share"]("Вот так:\n```python\nprint(x)") == 1.0 > nb["russian_share"]("Hello, мир")


def test_sft_batch_fits_every_card(nb, chat):
    cfg = nb["make_config"]("full", seed=1, data_dir="data")
    config = type("Shape", (), dict(num_hidden_layers=24, hidden_size=896, intermediate_size=4864))
    model = type("Qwen", (), dict(config=config, num_parameters=lambda self: 494_000_000))()
    sizes = [nb["plan_sft_batch"](cfg, model, 2000, free, lean=True) for free in (14.5, 22.5, 38.5, 78.5)]
    assert all(size * steps == cfg.sft_batch_size for size, steps in sizes)
    assert [size for size, _ in sizes] == sorted(size for size, _ in sizes)


def test_one_function_runs_a_row_of_the_sft_table(nb, tiny, tokenizer, tmp_path):
    tiny.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    cfg = nb["make_config"]("smoke", seed=1, data_dir="data", artifacts_dir=str(tmp_path), sft_model=str(tmp_path / "base"))
    rows = nb["load_rows"]("data/sample/instructions.jsonl")
    dialogues = nb["split_rows"](rows, 5, 1).map(nb["to_dialogue"], remove_columns=rows.column_names)
    row = nb["run_sft_ablation"](cfg, nb["inspect_hardware"](), dialogues, 8, sft_epochs=2, sft_learning_rate=2e-3)
    losses = [float(loss) for loss in row["val_loss_by_epoch"].split()]
    assert (row["sft_epochs"], row["sft_learning_rate"], row["model"], len(losses)) == (2, 2e-3, "base", 2)
    assert row["val_loss"] == min(losses) and losses[-1] < losses[0]
    assert not list(tmp_path.glob("checkpoints/*/checkpoint-*"))
