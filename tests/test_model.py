"""Section 6: the model, its scores against losses worked out by hand, and generation by a model that knows a few lines by heart."""

import math

import numpy as np
import pytest

LINES = [
    "Волга впадает в море.", "Кот спит.", "Вечер был тих, и лодка стояла у самого берега.", "Поезд ушел, а мы остались.", "Да.",
    "Над полем летели журавли.",
]  # fmt: skip


@pytest.fixture(scope="module")
def parrot(nb, smoke_cfg, tokenizer):
    """A model that continues each of LINES and then ends, by heart; its dropout is heavy in training mode."""
    nb["torch"].manual_seed(1)
    model = nb["build_model"](smoke_cfg, tokenizer)
    batch = nb["pack_texts"](LINES, tokenizer, 40).with_format("torch")[:]
    optimizer = nb["torch"].optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return nb["add_dropout"](model, 0.5)


def opening(line: str) -> str:
    return line.split()[0].rstrip(".")


def test_full_model_has_the_sizes_of_the_brief(nb, configure):
    cfg = configure(True)

    class Vocabulary:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 3

        def __len__(self):
            return cfg.vocab_size

    with nb["torch"].device("meta"):
        model = nb["build_model"](cfg, Vocabulary())
    config, attention = model.config, model.model.layers[0].self_attn
    assert 150e6 <= model.num_parameters() < 160e6 and model.dtype == nb["torch"].float32
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (
        512,
        1024,
    ) and attention.q_proj.weight.shape == (1024, 1024)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight and len(model.model.layers) == 16
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, config.max_position_embeddings) == (
        1,
        2,
        3,
        512,
    )


def test_no_token_sees_the_next_ones(nb, parrot):
    ids = nb["torch"].tensor([[1, 50, 60, 70, 80, 90]])
    changed = ids.clone()
    changed[0, 4] = 99
    first, second = (parrot.eval()(x).logits[0] for x in (ids, changed))
    assert nb["torch"].allclose(first[:4], second[:4], atol=1e-5) and not nb["torch"].allclose(
        first[4:], second[4:], atol=1e-2
    )


# Scores


def test_text_nll_by_hand(nb):
    """Two rows, four tokens to choose from: <eos> (2) and -100 count nothing, the first token is no target; bf16 is scored in fp32."""
    torch = nb["torch"]
    logits = torch.tensor([[[0.0, 1, 2, 3], [3.0, 0, 0, 1], [0.0, 0, 0, 0], [9.0, 9, 9, 9]], [[2.0, 0, 1, 0]] * 4])
    labels = torch.tensor([[1, 3, 0, 2], [1, 0, -100, -100]])

    def nats(row, token):
        return math.log(sum(map(math.exp, row))) - row[token]

    expected = [nats([0, 1, 2, 3], 3) + nats([3, 0, 0, 1], 0), nats([2, 0, 1, 0], 0)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        found = nb["text_nll"](logits.to(dtype), labels.clone(), eos=2)
        assert found.dtype == torch.float32 and found.tolist() == pytest.approx(expected, rel=1e-6)
    assert labels[0, 3] == 2


def by_hand(nb, model, tokenizer, texts, length) -> float:
    """Nats of the texts' tokens, row by row without padding and special tokens among the targets."""
    nats, special = 0.0, {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    for row in nb["pack_texts"](texts, tokenizer, length)["input_ids"]:
        ids = [token for token in row if token != tokenizer.pad_token_id]
        with nb["torch"].no_grad():
            chances = model.eval()(nb["torch"].tensor([ids])).logits[0].log_softmax(-1)
        nats -= sum(chances[i, token].item() for i, token in enumerate(ids[1:]) if token not in special)
    return nats


@pytest.mark.parametrize("training", [True, False])
def test_bits_per_char_are_bits_and_characters(nb, parrot, tokenizer, sample_texts, training):
    """Rows of unequal length, a model with dropout: the sums by hand, whatever the batch and the mode, which is put back."""
    texts = [sample_texts[0][:700], *LINES, sample_texts[1][:300]]
    expected = by_hand(nb, parrot, tokenizer, texts, 48) / math.log(2) / sum(map(len, texts))
    for size in (1, 4, 64):
        assert nb["bits_per_char"](parrot.train(training), tokenizer, iter(texts), 48, size) == pytest.approx(
            expected, rel=1e-5
        )
        assert parrot.training is training
    assert nb["bits_per_char"](parrot, tokenizer, LINES, 48) < 1 < expected


def test_the_trainer_evaluates_the_same_bits(nb, parrot, tokenizer, sample_texts, tmp_path):
    """Batches of every size, the last one not full; in bf16 a little beside."""
    texts = [sample_texts[0][:900], LINES[0], sample_texts[2][:500]]
    exact = nb["bits_per_char"](parrot, tokenizer, texts, 48)
    hooks, blocks = nb["score_by_bits"](tokenizer, sum(map(len, texts))), nb["pack_texts"](texts, tokenizer, 48)
    for size, options in ((1, {}), (3, {}), (5, {}), (64, {}), (4, {"bf16": True})):
        arguments = nb["TrainingArguments"](
            str(tmp_path), per_device_eval_batch_size=size, use_cpu=True, disable_tqdm=True, **options
        )
        trainer = nb["Trainer"](
            parrot, arguments, eval_dataset=blocks, data_collator=nb["transformers"].default_data_collator, **hooks
        )
        found = trainer.evaluate()["eval_bpc"]
        assert found == pytest.approx(exact, rel=1e-2 if options else 1e-6) and (found != exact or not options)


def test_unigram_baseline_by_hand(nb, tokenizer):
    """Add-one smoothing: a token seen 3 times of 4 has (3 + 1) / (4 + V), one never seen 1 / (4 + V)."""
    text = "кот"
    ids, size = nb["encode"]([text], tokenizer)[0], len(tokenizer)
    train = np.array([ids[0]] * 3 + [500])
    expected = (
        -(math.log2(4 / (4 + size)) + sum(math.log2((4 if i == ids[0] else 1) / (4 + size)) for i in ids[1:])) / 3
    )
    assert nb["unigram_bpc"](train, text, tokenizer) == pytest.approx(expected)


def test_compressor_baseline_counts_what_the_text_adds(nb):
    letters = "".join(
        np.random.default_rng(0).choice(list("абвгдежзийклмноп"), 20_000)
    )  # 4 bits each, no repeats to find
    alone, again = nb["compressor_bpc"]("", letters), nb["compressor_bpc"](letters, letters)
    assert 4 <= alone < 4.6 and again < 0.05
    assert nb["compressor_bpc"](letters, letters[:10_000] + "новое" * 400) < 0.1


def test_the_compressor_has_read_the_last_two_million_characters(nb, tokenizer, notebook):
    [cell] = [cell.source for cell in notebook.cells if cell.source.startswith("unseen_parts = ")]
    train, primers = {"a": "а" * 1_500_000, "b": "б" * 1_500_000}, []
    scope = nb | {"train_texts": train, "test_texts": {"t": "да"}, "validation_texts": {"v": "но"}, "tokenizer": tokenizer}
    scope |= {"train_blocks": nb["pack_texts"](["да"], tokenizer, 8), "show": lambda *shown: None}
    exec(cell, scope | {"compressor_bpc": lambda primer, text: primers.append((primer, text)) or 1.0})
    assert primers == [("а" * 500_000 + "б" * 1_500_000, text) for text in ("но", "да")]


# Generation


def test_a_trained_model_continues_and_ends_by_itself(nb, parrot, tokenizer):
    """Prompts of unequal length in one batch, dropout in the model: each line goes on to its end, which the ids show and the text not."""
    prompts = [opening(line) for line in LINES]
    texts = nb["generate"](parrot.train(), tokenizer, prompts, 30, **nb["GREEDY"])
    assert [prompt + text for prompt, text in zip(prompts, texts)] == LINES
    ids = nb["generate_ids"](parrot, tokenizer, prompts, 30, **nb["GREEDY"])
    assert all(row[-1] == tokenizer.eos_token_id and tokenizer.pad_token_id not in row for row in ids)
    assert [tokenizer.decode(row[:-1]) for row in ids] == texts
    cut = nb["generate_ids"](parrot, tokenizer, [prompts[2], prompts[4]], len(ids[2]) - 1, **nb["GREEDY"])
    assert cut == [ids[2][:-1], ids[4]] and len(ids[4]) < len(ids[2]) - 1


def test_any_of_several_end_tokens_ends(nb, parrot, tokenizer, monkeypatch):
    [[comma]] = nb["encode"]([","], tokenizer)
    monkeypatch.setattr(parrot.generation_config, "eos_token_id", [tokenizer.eos_token_id, comma])
    rows = nb["generate_ids"](parrot, tokenizer, [opening(LINES[3]), opening(LINES[0])], 30, **nb["GREEDY"])
    assert [row[-1] for row in rows] == [comma, tokenizer.eos_token_id]


def test_batching_changes_no_answer(nb, parrot, tokenizer):
    """Seventy prompts that the model does not know well: padding that was attended to, a lost batch or order would show."""
    prompts = ["Д", "Вечер был тих, и кот спит, а поезд ушел над самым полем", "Журавли"]
    alone = [nb["generate_ids"](parrot, tokenizer, [prompt], 16, **nb["GREEDY"])[0] for prompt in prompts]
    assert nb["generate_ids"](parrot, tokenizer, (prompts * 24)[:70], 16, **nb["GREEDY"]) == (alone * 24)[:70]


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_random_state_are_put_back(nb, parrot, tokenizer, training):
    torch = nb["torch"]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    nb["generate"](parrot.train(training), tokenizer, LINES[:2], 6, seed=3)
    assert parrot.training is training and torch.equal(before, torch.random.get_rng_state())


def test_sampling_follows_the_seed_and_the_settings(nb, tiny, tokenizer):
    prompts = nb["TEST_PROMPTS"][:3]
    first, again, other = (nb["generate"](tiny, tokenizer, prompts, 12, seed) for seed in (1, 1, 2))
    assert first == again != other and len({*first}) == 3
    assert (
        nb["generate"](tiny, tokenizer, prompts, 12, 1, **nb["SAMPLING"]) == first
    )  # what is meant unless told otherwise
    greedy = [nb["generate"](tiny, tokenizer, prompts, 12, seed, **nb["GREEDY"]) for seed in (1, 2)]
    assert greedy[0] == greedy[1] != first


def test_what_reaches_the_librarys_generate(nb, tiny, tokenizer, monkeypatch):
    """A cache, the limit, the decoding, the mask of left padding; no batch over 64 prompts."""
    calls, whole = [], tiny.generate
    monkeypatch.setattr(
        tiny, "generate", lambda **options: calls.append(options | {"mode": tiny.training}) or whole(**options)
    )
    nb["generate"](tiny.train(), tokenizer, ["Да"] * 64 + ["Нет, жизнь не кончена"], 2)
    nb["generate"](tiny, tokenizer, ["Да", "Нет, жизнь не кончена"], 2, **nb["GREEDY"])
    assert [len(call["input_ids"]) for call in calls] == [64, 1, 2] and not any(call["mode"] for call in calls)
    assert all(call["use_cache"] is True and call["max_new_tokens"] == 2 for call in calls)
    assert (
        calls[0].items() >= nb["SAMPLING"].items() and "temperature" not in calls[2] and calls[2]["do_sample"] is False
    )
    ids, mask = calls[2]["input_ids"], calls[2]["attention_mask"]
    assert mask[0, 0] == 0 and (mask[:, -1] == 1).all() and ((ids == tokenizer.pad_token_id) == (mask == 0)).all()
    assert (ids[1, 0], ids[0, mask[0].argmax()]) == (tokenizer.bos_token_id, tokenizer.bos_token_id)
    assert (nb["SAMPLING"]["temperature"], nb["SAMPLING"]["top_k"], nb["SAMPLING"]["do_sample"]) == (0.8, 0, True)


def test_a_chat_is_rendered_by_its_template(nb, tokenizer, monkeypatch):
    """Chats go through the template with the opening of an answer and get no second <bos>."""
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} в{% endif %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    chats = [
        [{"role": "user", "content": text}] for text in ("Волга впадает", "Волга впадает, как всякая река, и долго")
    ]
    rows = nb["encode_prompts"](tokenizer, chats)
    assert [row.replace("<pad>", "") for row in tokenizer.batch_decode(rows["input_ids"])] == [
        c[0]["content"] + " в" for c in chats
    ]
    assert rows["attention_mask"][0, 0] == 0 and (rows["attention_mask"][:, -1] == 1).all()
