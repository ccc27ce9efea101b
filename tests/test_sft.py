"""Sections 10-13: dialogues and their mask, checks of an answer, SFT and what is reported of it; tiny models learn by heart."""

import gc
import json
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import NOTEBOOK, ROOT, run_forked
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, pipeline

ROW = {"instruction": "Назови три реки.", "input": "", "output": "Волга, Обь, Лена."}
LESSONS = [
    ("Назови реку.", "Волга."),
    ("Назови город.", "Москва, столица."),
    ("Кто там?", "Это я.\nОткрой дверь."),
    ("Как дела?", "Хорошо."),
]
LETTERS = "абвгдежзийклмнопрстуфхцчшщъыьэюяАБВГДЕЖЗИКЛМНОПРСТУХЭ ,.!?:;—«»-<|>_\n0123456789"


def chat(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


def write_base(folder: Path, markers=False, pad="<pad>", eos="<eos>", stored: dict = {}) -> Path:
    """A tiny random GPT-2 (its layers have other names than Llama's) of single letters, in many layouts."""
    import tokenizers
    import torch

    words = ["<unk>", "<eos>", "<pad>", *LETTERS]
    letters = tokenizers.Tokenizer(
        tokenizers.models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>")
    )
    letters.decoder = tokenizers.decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, unk_token="<unk>", eos_token=eos, pad_token=pad)
    if markers:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    torch.manual_seed(1)
    sizes = dict(
        vocab_size=len(tokenizer), n_positions=512, n_embd=64, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=1
    )
    model = GPT2LMHeadModel(GPT2Config(**sizes, attn_pdrop=0, embd_pdrop=0, resid_pdrop=0))
    model.generation_config.update(**stored)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


def make_cfg(base, folder, **changes) -> SimpleNamespace:
    sizes = dict(sft_epochs=2, sft_learning_rate=3e-3, sft_batch_size=4, sft_max_length=120, dialogues_at_once=2)
    return SimpleNamespace(
        **dict(sft_model=str(base), artifacts_dir=folder, precision="fp32", seed=1) | sizes | changes
    )


def make_dialogues(nb, base, rows: list[dict], validation: list[dict] | None = None):
    tokenizer = nb["load_chat_tokenizer"](base)
    parts = {"train": rows, "validation": validation or rows}
    return nb["DatasetDict"](
        {
            name: nb["Dataset"].from_list([row | nb["measure_row"](row, tokenizer) for row in part])
            for name, part in parts.items()
        }
    )


# Rows and dialogues


@pytest.mark.parametrize("system", [None, "", "  ", "absent", " Отвечай кратко.\n"])
def test_a_dialogue_has_a_system_message_only_where_input_is_filled(nb, system):
    row = {"instruction": " Посчитай.", "output": "\n 1. Раз.\n\n2. Два. "} | (
        {} if system == "absent" else {"input": system}
    )
    said = [{"role": "system", "content": "Отвечай кратко."}] if "Отвечай" in str(system) else []
    assert nb["to_dialogue"](row) == {
        "prompt": said + chat("Посчитай."),
        "completion": [{"role": "assistant", "content": "1. Раз.\n\n2. Два."}],
    }


def pairs(*counts: int) -> list[dict]:
    """Rows of as many different questions as there are numbers, each with so many answers."""
    return [
        ROW | {"instruction": f"Вопрос {i}", "output": f"{i} {n}"}
        for i, count in enumerate(counts)
        for n in range(count)
    ]


@pytest.mark.parametrize(
    "counts, held_out, sizes",
    [
        ([1] * 100, 500, (80, 10, 10)),  # a tenth at most
        ([1] * 100, 6, (88, 6, 6)),
        ([1] * 109, 10, (89, 10, 10)),
        ([1] * 99, 10, (81, 9, 9)),
        ([2] * 30, 6, (48, 6, 6)),
        ([1, 1, 1], 500, (1, 1, 1)),
        ([20, 20, 20], 500, (20, 20, 20)),  # never none, though a tenth would be 6
        ([500, *[1] * 60], 10, (540, 10, 10)),  # the frequent question trains
        ([1, 90, 90], 5, None),
    ],
)
def test_parts_have_the_sizes_asked_for(nb, counts, held_out, sizes):
    for seed in range(5):
        parts = nb["split_rows"](nb["Dataset"].from_list(pairs(*counts)), held_out, seed)
        assert [*parts] == ["train", "validation", "test"] and min(parts.num_rows.values()) > 0
        assert sum(parts.num_rows.values()) == sum(counts)
        assert sizes is None or (*parts.num_rows.values(),) == sizes
        questions = [set(part["instruction"]) for part in parts.values()]
        assert sum(map(len, questions)) == len(set.union(*questions)) == len(counts)


def test_the_pair_decides_whatever_its_case_and_spaces(nb):
    spelled = ["Вопрос  {} ", " вопрос {}", "ВОПРОС\n{}"]
    rows = [ROW | {"instruction": spelled[n % 3].format(n // 3), "output": f"{n}"} for n in range(90)]
    rows += [row | {"input": "Кратко."} for row in rows]
    one = [ROW | {"input": f"Вход {n}", "output": f"{n}"} for n in range(40)]  # one instruction, many inputs
    assert nb["split_rows"](nb["Dataset"].from_list(one), 4, 1).num_rows == {"train": 32, "validation": 4, "test": 4}
    parts = nb["split_rows"](nb["Dataset"].from_list(rows), 500, 1)
    keys = {name: {(row["input"], *row["instruction"].lower().split()) for row in part} for name, part in parts.items()}
    assert sum(map(len, keys.values())) == len(set.union(*keys.values())) == 60 and sum(parts.num_rows.values()) == 180


def test_repeats_go_and_the_seed_decides_the_rest(nb):
    rows = pairs(*[1] * 40)
    repeated = nb["Dataset"].from_list(rows[:2] + rows)
    first, again, other = (nb["split_rows"](repeated, 4, seed) for seed in (1, 1, 2))
    assert sum(first.num_rows.values()) == 40 and first["test"]["output"][:] == again["test"]["output"][:]
    assert first["test"]["output"][:] != other["test"]["output"][:]
    with pytest.raises(ValueError, match="SFT_DATASET"):
        nb["split_rows"](nb["Dataset"].from_list(pairs(5, 5)), 1, 1)


# The template and the mask


@pytest.mark.parametrize("pad", ["<pad>", None, "<eos>", "<|im_end|>"])
@pytest.mark.parametrize("eos, markers", [("<eos>", False), (None, True)])
def test_any_layout_trains_and_ends_at_the_marker(nb, tmp_path, pad, eos, markers):
    folder = write_base(tmp_path / "base", markers, pad, eos)
    model, tokenizer = nb["load_chat_model"](folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer("<|im_end|>", add_special_tokens=False).input_ids == [end] == [tokenizer.eos_token_id]
    assert tokenizer.decode([end], skip_special_tokens=True) == "" and tokenizer.pad_token == (pad or eos or "<|im_end|>")
    options = model.generation_config
    assert options.repetition_penalty in (None, 1.0)  # a greedy answer is that of the weights
    assert options.eos_token_id == sorted({1, end}) and options.pad_token_id == tokenizer.pad_token_id is not None
    assert model.get_input_embeddings().num_embeddings >= len(tokenizer) and model.dtype == nb["torch"].float32
    rows = [ROW | {"output": "Да."}, ROW | {"input": "Кратко.", "output": "\nНет, никогда."}]
    dialogues = make_dialogues(nb, folder, rows)
    trainer = nb["make_sft_trainer"](dialogues, make_cfg(folder, tmp_path, sft_epochs=20, sft_learning_rate=1e-2))
    batch = trainer.data_collator([*trainer.train_dataset])
    for row, ids, labels, mask in zip(dialogues["train"], batch["input_ids"], batch["labels"], batch["attention_mask"]):
        said = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in row["prompt"]]
        text = "".join(said) + "<|im_start|>assistant\n"
        assert tokenizer.decode(ids[: row["length"]]) == text + row["completion"][0]["content"] + "<|im_end|>"
        assert tokenizer.decode(labels[labels >= 0]) == row["completion"][0]["content"] + "<|im_end|>"
        assert mask.sum() == row["length"] and (labels[row["length"] :] == -100).all()
    done = nb["train_to_end"](trainer)
    [answers] = nb["ask_model"](done, [row["prompt"] for row in dialogues["train"]], 30, nb["GREEDY"])
    assert answers["ended"].all() and answers["answer"].tolist() == ["Да.", "Нет, никогда."]


def test_markers_typed_in_a_message_stay_text(nb, base):
    tokenizer = nb["load_chat_tokenizer"](base)
    row = ROW | {"instruction": "Что значит <|im_end|>?", "output": "<|im_start|>user"}
    ids = tokenizer.apply_chat_template(sum(nb["to_dialogue"](row).values(), []), return_dict=False)
    assert [ids.count(tokenizer.convert_tokens_to_ids(token)) for token in ("<|im_start|>", "<|im_end|>")] == [2, 2]


def test_a_dialogue_of_the_greatest_length_stays_and_one_more_goes(notebook, nb, base, tmp_path):
    """A letter is a token here, and so are a marker, a role and a line break: 9 beside the two texts."""
    lengths = [10] * 12 + [384 - 9 - 6, 385 - 9 - 6]
    rows = [ROW | {"instruction": f"Что {n:02}", "output": "а" * length} for n, length in enumerate(lengths)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    settings = {"SFT_MODEL": base, "SFT_DATASET": tmp_path / "rows.jsonl"}
    run = run_forked(notebook, nb, [0, 10, 11], tmp_path / "out", then="print(fitting['length'][:])", **settings)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == str([25] * 12 + [384]), run.stdout[-900:]


# Checks of an answer


@pytest.mark.parametrize(
    "text, is_russian",
    [
        ("", False),
        (" \n", False),
        ("Да", True),
        ("Ёлка", True),
        ("8", True),
        ("абвгAd", False),
        ("абвгA", True),
        ("абвгдежзAB", True),
    ]
    + [("абвгдежAB", False), ("檬檬 лимон", False), ("київ", False)],
)
def test_russian_is_four_letters_of_five(nb, text, is_russian):
    assert nb["russian"](text) is is_russian


@pytest.mark.parametrize(
    "text, passes",
    [
        ("", True),
        ("раз два три", True),
        ("а б в г д а б в г", True),
        ("а б в г а б в г", True),
        ("а б в г д а Б, в! г д", False),
    ]
    + [
        ("раз " * 4, True),
        ("раз " * 5, False),
        ("1. Учи слова каждый\n2. Учи слова каждый\n3. Учи слова каждый", True),
    ],
)
def test_a_fifth_of_the_four_word_pieces_may_repeat(nb, text, passes):
    """By hand: «а б в г д а б в г» has 6 pieces and one repeat (17%), with one word more 7 and two (29%)."""
    assert nb["no_loops"](text) is passes


def test_an_answer_has_ended_only_by_its_last_token(nb):
    assert [nb["ended"](ids, [7, 9]) for ids in ([1, 7], [9], [], [7, 1], [1])] == [True, True, False, False, False]
    table = nb["pd"].DataFrame({"answer": ["Да.", "Yes.", "раз " * 9], "ended": [True, False, False]})
    assert nb["check"](table).to_dict("list") == {
        "ended": [True, False, False], "russian": [True, False, True], "no_loops": [True, True, False]}  # fmt: skip


# Training


def by_hand(nb, source, rows) -> tuple[float, float]:
    """Nats per answer token and the share of guessed ones, row by row without a trainer."""
    model, tokenizer = nb["load_chat_model"](source)
    nats, hits, count = 0.0, 0, 0
    for row in rows:
        ids = tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)
        start = len(tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False))
        with nb["torch"].no_grad():
            logits = model.eval()(nb["torch"].tensor([ids])).logits[0].log_softmax(-1)
        for i in range(start, len(ids)):
            nats, count = nats - logits[i - 1, ids[i]].item(), count + 1
            hits += int(logits[i - 1].argmax() == ids[i])
    return nats / count, hits / count


@pytest.fixture(scope="module")
def learnt(nb, base, tmp_path_factory) -> dict:
    """Four answers learnt by the notebook's own function; its trainer is caught on the way."""
    folder = tmp_path_factory.mktemp("learnt")
    rows = [{"instruction": question, "input": "", "output": answer} for question, answer in LESSONS]
    dialogues = make_dialogues(nb, base, rows * 5, rows)
    cfg = make_cfg(base, folder, sft_epochs=16, sft_batch_size=4)
    trainer = nb["make_sft_trainer"](dialogues, cfg)
    done = nb["train_to_end"](trainer)
    other = nb["make_sft_trainer"](dialogues, cfg)
    other.train = None  # what is done is not done again
    assert nb["train_to_end"](other) == done
    return {"trainer": trainer, "folder": done, "log": nb["read_log"](done), "dialogues": dialogues, "cfg": cfg}


def test_what_was_taught_is_answered_and_ended(nb, learnt):
    questions = [chat(question) for question, _ in LESSONS]
    [answers] = nb["ask_model"](learnt["folder"], questions, 40, nb["GREEDY"])
    assert [*zip((q for q, _ in LESSONS), answers["answer"])] == LESSONS and answers["ended"].all()
    longest = len(LESSONS[2][1])
    [exact] = nb["ask_model"](learnt["folder"], questions, longest + 1, nb["GREEDY"])
    [cut] = nb["ask_model"](learnt["folder"], questions, longest, nb["GREEDY"])
    assert (
        exact["ended"].all()
        and cut["ended"].tolist() == [True, True, False, True]
        and cut["answer"][2] == LESSONS[2][1]
    )


def test_the_recipe_reached_the_trainer(nb, learnt):
    trainer, cfg, log = learnt["trainer"], learnt["cfg"], learnt["log"]
    args, rates = trainer.args, nb["logged"](log, "learning_rate")
    assert (
        trainer.state.global_step == 20 // 4 * 16
        and args.per_device_train_batch_size * args.gradient_accumulation_steps == 4
    )
    assert (args.learning_rate, args.num_train_epochs, args.max_length, args.seed) == (3e-3, 16, 120, cfg.seed)
    assert (
        args.warmup_steps == 0.03 and not (args.bf16 or args.fp16 or args.packing) and not args.gradient_checkpointing
    )
    assert args.train_sampling_strategy == "group_by_length" and trainer.completion_only_loss is True
    assert {weight.dtype for weight in trainer.model.parameters()} == {nb["torch"].float32}
    assert trainer.processing_class.eos_token == "<|im_end|>" and 0 < rates[-1] < 0.2 * max(rates) <= 0.2 * 3e-3
    assert len(nb["logged"](log, "seconds")) == len(nb["logged"](log, "eval_loss")) - 1 == 16
    assert {path.name for path in learnt["folder"].iterdir()} >= {"model.safetensors", "log.json", "tokenizer.json"}
    assert not [*learnt["folder"].glob("checkpoint-*")]


def test_losses_before_and_after_are_those_of_the_answers(nb, base, learnt):
    """The four validation rows are one batch or two equal ones, so the trainer's means are near those over all tokens."""
    losses, hits = (nb["logged"](learnt["log"], key) for key in ("eval_loss", "eval_mean_token_accuracy"))
    validation = learnt["dialogues"]["validation"]
    assert (losses[0], hits[0]) == pytest.approx(by_hand(nb, base, validation), abs=0.05)
    best = losses.index(min(losses[1:]))
    assert (losses[best], hits[best]) == pytest.approx(by_hand(nb, learnt["folder"], validation), abs=0.02)


@pytest.mark.parametrize("precision, flags", [("bf16", (True, False)), ("fp16", (False, True))])
def test_half_precision_is_autocast_over_fp32_weights(nb, base, tmp_path, monkeypatch, precision, flags):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    dialogues = make_dialogues(nb, base, [ROW])
    trainer = nb["make_sft_trainer"](dialogues, make_cfg(base, tmp_path, precision=precision))
    assert (trainer.args.bf16, trainer.args.fp16) == flags and trainer.model.dtype == nb["torch"].float32


def test_the_folder_is_named_by_settings_weights_and_rows(nb, base, tmp_path):
    def name(rows=(ROW,), source=base, where=tmp_path, **changes) -> str:
        return nb["make_sft_trainer"](
            make_dialogues(nb, source, [*rows]), make_cfg(source, where, **changes)
        ).args.output_dir

    first = name()
    other = write_base(tmp_path / "other", markers=True)
    assert Path(name(where=tmp_path / "elsewhere")).name == Path(first).name and name(dialogues_at_once=1) == first
    changes = [
        {"seed": 2},
        {"sft_epochs": 3},
        {"sft_learning_rate": 1e-4},
        {"sft_batch_size": 2},
        {"sft_max_length": 99},
    ]
    names = {name(**change) for change in changes} | {name([ROW | {"output": "Нет."}]), name(source=other), first}
    assert len(names) == len(changes) + 3


def test_a_model_that_answered_or_trained_is_freed(nb, base, learnt, monkeypatch):
    load, seen = nb["load_chat_model"], []

    def remember(source):
        model, tokenizer = load(source)
        seen.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setitem(nb, "load_chat_model", remember)
    nb["ask_model"](base, [chat("Кто там?")], 3, nb["GREEDY"])
    assert seen[0]() is None
    nb["train_to_end"](nb["make_sft_trainer"](learnt["dialogues"], learnt["cfg"]))  # done already: the trainer is made and dropped
    gc.collect()
    assert seen[1]() is None


def test_a_penalty_stored_with_the_model_does_not_reach_greedy_answers(nb, base, tmp_path):
    biased = write_base(tmp_path, stored={"do_sample": True, "repetition_penalty": 9.0, "temperature": 0.1})
    plain, own = (nb["ask_model"](source, [chat("Кто там?")], 20, nb["GREEDY"])[0] for source in (base, biased))
    assert plain["answer"][0] == own["answer"][0]


def test_the_saved_model_answers_alike_under_pipeline(nb, learnt, tmp_path):
    """Sampled, with the penalty, from the same seed; nothing is said of decoding but what is stored."""
    torch, card = nb["torch"], dict(license="other", title="т", text="т", limits="т")
    model, tokenizer = nb["load_chat_model"](learnt["folder"])
    nb["save_model"](model.to(torch.bfloat16), tokenizer, tmp_path / "sft", card, **nb["ANSWERING"], max_new_tokens=25)
    pipe = pipeline("text-generation", str(tmp_path / "sft"), dtype=torch.float32, device="cpu")
    options = pipe.model.generation_config
    assert {name: getattr(options, name) for name in nb["ANSWERING"]} == nb["ANSWERING"] and options.use_cache
    for question in ("Кто там?", "Что это?", "Зачем?"):
        [ours] = nb["ask_model"](tmp_path / "sft", [chat(question)], 25, nb["ANSWERING"])
        torch.manual_seed(0)
        assert pipe(chat(question))[0]["generated_text"][-1]["content"] == ours["answer"][0]


COUNT_ROWS = """
import json, sys, os
from pathlib import Path
sys.path.insert(0, "tests")
import nbformat, test_sft as t
nb = {}
for cell in nbformat.read(sys.argv[1], as_version=4).cells:
    if {"definitions", "parameters"} & set(cell.metadata.get("tags", [])):
        exec(cell.source, nb)
folder, seen = Path(sys.argv[2]), []
state = nb["PartialState"](cpu=True)
rows = [t.ROW | {"instruction": f"Вопрос {n}", "output": "да " * (n % 7) + str(n)} for n in range(40)]
cfg = t.make_cfg(folder / "base", folder, sft_batch_size=8, dialogues_at_once=2)
trainer = nb["make_sft_trainer"](t.make_dialogues(nb, folder / "base", rows), cfg)
step = trainer.training_step
def watched(model, inputs, *rest):
    seen.extend(trainer.processing_class.decode(row[row >= 0]) for row in inputs["labels"])
    return step(model, inputs, *rest)
trainer.training_step = watched
nb["train_to_end"](trainer)
(folder / f"seen-{state.process_index}.json").write_text(json.dumps([trainer.args.gradient_accumulation_steps, seen]))
state.destroy_process_group()
"""


def test_two_processes_see_every_row_once_an_epoch(tmp_path):
    write_base(tmp_path / "base")
    (tmp_path / "count.py").write_text(COUNT_ROWS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*command, str(tmp_path / "count.py"), str(NOTEBOOK), str(tmp_path)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200)  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    (steps, one), (_, two) = (json.loads((tmp_path / f"seen-{i}.json").read_text()) for i in (0, 1))
    assert steps == 2 and len(one) == len(two) == 40 and sorted({*one, *two}) == sorted({*one[:20], *two[:20]})
    assert len({*one[:20], *two[:20]}) == len({*one[20:], *two[20:]}) == 40


# The whole run


def test_the_report_is_recomputed_from_the_saved_models(nb, smoke):
    metrics, folder = smoke["metrics"]["sft"], smoke["folder"]
    tokenizer = nb["load_chat_tokenizer"](folder / "pretrain")
    rows = nb["open_rows"]("data/sample/instructions.jsonl", 384).map(
        nb["measure_row"], fn_kwargs={"tokenizer": tokenizer}
    )
    parts = nb["split_rows"](rows.filter(lambda row: row["length"] <= 384), 8, 42)
    for when, source in (("before", folder / "pretrain"), ("after", folder / "sft")):
        nats, hits = by_hand(nb, source, parts["validation"])
        assert metrics[f"eval_loss_{when}"] == pytest.approx(nats, abs=0.03)  # the saved weights are bf16
        chats = [*{str(row["prompt"]): row["prompt"] for row in parts["test"]}.values()]
        for name, decoding in ((f"{when}_greedy", nb["GREEDY"]), (when, nb["ANSWERING"])):
            [answers] = nb["ask_model"](source, chats, 60, decoding)
            assert metrics["checks"][name] == pytest.approx(nb["check"](answers).mean().to_dict()), name
        [four] = nb["ask_model"](source, [chat(question) for question in nb["QUESTIONS_RUS"]], 60, nb["ANSWERING"])
        assert [row[when] for row in metrics["answers"]] == four["answer"].tolist()
    assert metrics["token_accuracy"] == pytest.approx(hits, abs=0.03)
    assert (metrics["rows"], metrics["epochs"], metrics["stand_in"]) == (len(parts["train"]), 4, True)
    assert (metrics["model"], metrics["dataset"]) == ("pretrain", "instructions.jsonl")
    stored = json.loads((folder / "sft" / "generation_config.json").read_text())
    assert stored.items() >= {**nb["ANSWERING"], "max_new_tokens": 60}.items()
    tokens = sum(parts["train"]["length"]) * metrics["epochs"]
    assert metrics["tokens_per_s"] * metrics["train_s"] == pytest.approx(tokens) and metrics["train_s"] > 0
    assert (
        metrics["eval_loss_after"] < metrics["eval_loss_before"]
        and [row["question"] for row in metrics["answers"]] == nb["QUESTIONS_RUS"]
    )


def pages(smoke) -> list[str]:
    outputs = [output for cell in smoke["cells"] for output in cell.get("outputs", [])]
    return [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]


def test_the_table_of_shares_is_that_of_the_metrics(nb, smoke):
    [page] = [page for page in pages(smoke) if "Отложенных вопросов" in page]
    count = int(nb["re"].search(r"Отложенных вопросов: (\d+)", page)[1])
    said = [output.data["text/markdown"] for cell in smoke["cells"] for output in cell.get("outputs", [])
            if "text/markdown" in output.get("data", {})]  # fmt: skip
    assert any(f"±{math.ceil(98 / count**0.5)} процентных" in text for text in said)
    checks, cells = smoke["metrics"]["sft"]["checks"], nb["re"].findall(r"<t[dh][^>]*>([^<]+)</t", page)
    columns = {
        "до, жадно": "before_greedy",
        "до, случайно": "before",
        "после, жадно": "after_greedy",
        "после, случайно": "after",
    }
    labels = {"завершены моделью": "ended", "по-русски": "russian", "без петель": "no_loops"}
    assert cells[1:5] == [*columns]
    for i, (label, check) in enumerate(labels.items()):
        assert cells[5 + 5 * i : 10 + 5 * i] == [label, *(f"{checks[run][check]:.0%}" for run in columns.values())]
