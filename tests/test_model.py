"""Section 6: the model, its scores against losses worked out by hand, and generation by a model that knows a few lines by heart."""
import math

import numpy as np
import pytest

LINES = ["Волга впадает в море.", "Кот спит.", "Вечер был тих, и лодка стояла у самого берега.", "Поезд ушел, а мы остались.", "Да.",
         "Над полем летели журавли."]


def smoke_model(nb, tokenizer, seed: int = 1):
    nb["torch"].manual_seed(seed)
    return nb["build_model"](nb["make_config"]("smoke"), tokenizer)


@pytest.fixture(scope="module")
def parrot(nb, tokenizer):
    """A model that continues each of LINES and then ends, by heart; its dropout is heavy in training mode."""
    model, batch = smoke_model(nb, tokenizer), nb["pack_texts"](LINES, tokenizer, 40).with_format("torch")[:]
    optimizer = nb["torch"].optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    nb["add_dropout"](model, 0.5)
    return model


def opening(line: str) -> str:
    return line.split()[0].rstrip(".")


# The model

def test_full_model_has_the_sizes_of_the_brief(nb):
    cfg = nb["make_config"]("full")

    class Vocabulary:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 3

        def __len__(self):
            return cfg.vocab_size

    with nb["torch"].device("meta"):
        model = nb["build_model"](cfg, Vocabulary())
    config, attention = model.config, model.model.layers[0].self_attn
    assert 140e6 < model.num_parameters() < 160e6 and model.dtype == nb["torch"].float32
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (16, 8, 512)
    assert attention.k_proj.weight.shape == attention.v_proj.weight.shape == (512, 1024) and attention.q_proj.weight.shape == (1024, 1024)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight and len(model.model.layers) == cfg.num_hidden_layers
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 3)


def test_maskless_attention_is_exact_on_right_padded_rows(nb, parrot, tokenizer):
    block, outputs = nb["pack_texts"](LINES, tokenizer, 64).with_format("torch")[:], {}
    assert parrot.config._attn_implementation == "sdpa_causal"
    for attention in ("sdpa_causal", "sdpa"):
        parrot.eval().set_attn_implementation(attention)
        outputs[attention] = parrot(input_ids=block["input_ids"], attention_mask=block["attention_mask"]).logits
    parrot.set_attn_implementation("sdpa_causal")
    real = block["attention_mask"].bool()
    assert nb["torch"].allclose(outputs["sdpa"][real], outputs["sdpa_causal"][real], atol=1e-4)


def test_no_token_sees_the_next_ones(nb, parrot):
    ids = nb["torch"].tensor([[1, 50, 60, 70, 80, 90]])
    changed = ids.clone()
    changed[0, 4] = 99
    first, second = (parrot.eval()(x).logits[0] for x in (ids, changed))
    assert nb["torch"].allclose(first[:4], second[:4], atol=1e-5) and not nb["torch"].allclose(first[4:], second[4:], atol=1e-2)


# Scores

def by_hand(nb, model, tokenizer, blocks) -> tuple[float, int]:
    """Nats and number of the text's tokens, row by row without padding and without special tokens among the targets."""
    nats, count, special = 0.0, 0, {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    model.eval()
    for row in blocks["input_ids"]:
        ids = [token for token in row if token != tokenizer.pad_token_id]
        with nb["torch"].no_grad():
            log_probabilities = model(nb["torch"].tensor([ids])).logits[0].log_softmax(-1)
        for i, token in enumerate(ids[1:]):
            if token not in special:
                nats, count = nats - log_probabilities[i, token].item(), count + 1
    return nats, count


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("training", [True, False])
def test_every_token_of_the_text_is_scored_once(nb, parrot, tokenizer, sample_texts, batch_size, training):
    """Rows of unequal length, a model with dropout: the sums by hand, whatever the batch and the mode, which is put back."""
    blocks = nb["pack_texts"]([*LINES, sample_texts[0][:600]], tokenizer, 40)
    expected = by_hand(nb, parrot, tokenizer, blocks)
    nats, count = nb["block_nll"](parrot.train(training), tokenizer, blocks, batch_size)
    assert nats == pytest.approx(expected[0], rel=1e-4) and count == expected[1] and parrot.training is training
    assert count == sum(map(len, nb["encode"]([*LINES, sample_texts[0][:600]], tokenizer)))


def test_bits_per_char_are_bits_and_characters(nb, parrot, tokenizer, sample_texts):
    texts = [sample_texts[0][:700], sample_texts[1][:300]]
    nats, _ = by_hand(nb, parrot, tokenizer, nb["pack_texts"](texts, tokenizer, 48))
    scores = [nb["bits_per_char"](parrot.train(), tokenizer, (text for text in texts), 48, size) for size in (1, 4)]
    assert scores == pytest.approx([nats / math.log(2) / 1000] * 2, rel=1e-4)
    assert nb["bits_per_char"](parrot, tokenizer, LINES, 48) < 1 < scores[0]  # what it knows by heart, and what it does not


def test_bits_per_char_of_a_uniform_model_is_exact(nb, tokenizer, sample_texts):
    uniform = smoke_model(nb, tokenizer)
    nb["torch"].nn.init.zeros_(uniform.model.norm.weight)  # zero hidden states: all logits are equal
    tokens = sum(map(len, nb["encode"](sample_texts[:3], tokenizer)))
    expected = tokens * math.log2(len(tokenizer)) / sum(map(len, sample_texts[:3]))
    assert nb["bits_per_char"](uniform, tokenizer, sample_texts[:3], 128) == pytest.approx(expected, rel=1e-6)


def test_unigram_baseline_by_hand(nb, tokenizer):
    """Add-one smoothing: a token seen 3 times of 4 has (3 + 1) / (4 + V), one never seen 1 / (4 + V)."""
    text = "кот"
    ids, size = nb["encode"]([text], tokenizer)[0], len(tokenizer)
    train = np.array([ids[0]] * 3 + [500])
    expected = -(math.log2(4 / (4 + size)) + sum(math.log2((4 if i == ids[0] else 1) / (4 + size)) for i in ids[1:])) / 3
    assert nb["unigram_bpc"](train, text, tokenizer) == pytest.approx(expected)


def test_compressor_baseline_counts_what_the_text_adds(nb):
    letters = "".join(np.random.default_rng(0).choice(list("абвгдежзийклмноп"), 20_000))  # 4 bits each, and no repeats to find
    alone, again = nb["compressor_bpc"]("", letters), nb["compressor_bpc"](letters, letters)
    assert 4 <= alone < 4.6 and again < 0.05
    assert nb["compressor_bpc"](letters, letters[:10_000] + "новое" * 400) < 0.1


# Generation

def test_a_trained_model_continues_and_ends_by_itself(nb, parrot, tokenizer):
    """Prompts of unequal length in one batch, dropout in the model: each line goes on to its end and no further."""
    parrot.train()
    prompts = [opening(line) for line in LINES]
    assert [p + t for p, t in zip(prompts, nb["generate"](parrot, tokenizer, prompts, 30, **nb["GREEDY"]))] == LINES
    ids = nb["generate_ids"](parrot, tokenizer, prompts, 30, **nb["GREEDY"])
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert all(len(row) < 30 and not ends & {*row} for row in ids)
    assert [tokenizer.decode(row) for row in ids] == [line.removeprefix(opening(line)) for line in LINES]


def test_a_cut_text_has_exactly_the_tokens_asked_for(nb, parrot, tokenizer):
    whole = nb["generate_ids"](parrot, tokenizer, [opening(LINES[2])], 40, **nb["GREEDY"])[0]
    limit = len(whole) - 1
    cut, short = nb["generate_ids"](parrot, tokenizer, [opening(LINES[2]), opening(LINES[4])], limit, **nb["GREEDY"])
    assert cut == whole[:limit] and len(cut) == limit > len(short)


def test_batching_changes_no_logit(nb, parrot, tokenizer):
    """Lines that the model does not know well: padding that was attended to, or stood on the right, would change the choice."""
    prompts = ["Д", "Вечер был тих, и кот спит, а поезд ушел над самым полем", "Журавли"]
    together = nb["generate_ids"](parrot, tokenizer, prompts, 16, **nb["GREEDY"])
    assert together == [nb["generate_ids"](parrot, tokenizer, [prompt], 16, **nb["GREEDY"])[0] for prompt in prompts]


@pytest.mark.parametrize("training", [True, False])
def test_the_models_state_is_put_back(nb, parrot, tokenizer, training):
    torch = nb["torch"]
    parrot.train(training)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    nb["generate"](parrot, tokenizer, LINES[:2], 6, seed=3)
    with pytest.raises(ValueError):
        nb["generate"](parrot, tokenizer, LINES[:2], 6, temperature=-1.0, do_sample=True)
    assert parrot.training is training and parrot.config._attn_implementation == "sdpa_causal"
    assert torch.equal(before, torch.random.get_rng_state())


def test_sampling_follows_the_seed(nb, tokenizer):
    model, prompts = smoke_model(nb, tokenizer), nb["TEST_PROMPTS"][:3]
    first, again, other = (nb["generate"](model, tokenizer, prompts, 12, seed=seed) for seed in (1, 1, 2))
    assert first == again != other and len({*first}) == 3
    assert nb["generate"](model, tokenizer, prompts, 12, seed=1, **nb["SAMPLING"]) == first  # what is meant unless told otherwise
    greedy = [nb["generate"](model, tokenizer, prompts, 12, seed=seed, **nb["GREEDY"]) for seed in (1, 2)]
    assert greedy[0] == greedy[1] != first


def test_sampling_takes_the_models_own_probabilities(nb, tokenizer):
    """Nearly equal logits, one token each for many equal prompts: no cut-off by rank, and only `top_p` keeps a few of 600 away."""
    model = smoke_model(nb, tokenizer)
    tokens = [row[0] for row in nb["generate_ids"](model, tokenizer, ["Да"] * 2000, 1, **nb["SAMPLING"]) if row]
    assert 450 < len({*tokens}) <= 570


def test_generation_knows_no_dropout(nb, parrot, tokenizer):
    """Prompts that it was never taught, where half of its activations would change the choice."""
    calm, training = (nb["generate"](parrot.train(mode), tokenizer, nb["TEST_PROMPTS"], 20, **nb["GREEDY"]) for mode in (False, True))
    assert calm == training


def test_the_repetition_penalty_acts_on_new_tokens_alone(nb, parrot, tokenizer):
    """A token of the prompt may come next as before; a token that was written does not come twice."""
    prompts = [line[:end] for line in LINES for end in range(4, len(line), 3)]
    plain, strict = (nb["generate_ids"](parrot, tokenizer, prompts, 12, **nb["GREEDY"], **penalty) for penalty in ({}, {"repetition_penalty": 1e4}))
    assert [row[:1] for row in plain] == [row[:1] for row in strict]
    assert any(row and row[0] in nb["encode"]([prompt], tokenizer)[0] for prompt, row in zip(prompts, strict))
    assert all(len({*row}) == len(row) for row in strict) and any(len({*row}) < len(row) for row in plain)


def test_any_of_several_end_tokens_ends(nb, parrot, tokenizer):
    [[comma]] = nb["encode"]([","], tokenizer)
    parrot.generation_config.eos_token_id = [tokenizer.eos_token_id, comma]
    try:
        texts = nb["generate"](parrot, tokenizer, [opening(LINES[3]), opening(LINES[0])], 30, **nb["GREEDY"])
    finally:
        parrot.generation_config.eos_token_id = tokenizer.eos_token_id
    assert [LINES[3].find(","), len(LINES[0])] == [len(opening(LINES[3]) + texts[0]), len(opening(LINES[0]) + texts[1])]


def test_a_chat_is_rendered_by_its_template(nb, parrot, tokenizer):
    """Chats go through the template with the opening of an answer, strings as they are; both padded on the left."""
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %} в{% endif %}"
    try:
        chats = [[{"role": "user", "content": "Волга впадает"}], [{"role": "user", "content": "Волга впадает, как всякая река, и долго"}]]
        rows = nb["encode_prompts"](tokenizer, chats)
        assert [row.replace("<pad>", "").replace("<bos>", "") for row in tokenizer.batch_decode(rows["input_ids"])] == [
            chat[0]["content"] + " в" for chat in chats]
        assert (rows["attention_mask"][:, -1] == 1).all() and rows["attention_mask"][0, 0] == 0
        assert (rows["input_ids"][0] == tokenizer.pad_token_id).tolist() == (rows["attention_mask"][0] == 0).tolist()
    finally:
        tokenizer.chat_template = None
