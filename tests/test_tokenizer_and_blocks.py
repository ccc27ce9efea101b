import pytest


def test_round_trip(tokenizer, nb, sample_texts):
    for text in sample_texts:
        assert tokenizer.decode(nb["encode"]([text], tokenizer)[0]) == text


def test_saved_tokenizer_is_loaded_back_identically(tokenizer, nb, tmp_path, sample_texts):
    tokenizer.save_pretrained(tmp_path)
    loaded = nb["AutoTokenizer"].from_pretrained(tmp_path)
    assert loaded(sample_texts).input_ids == tokenizer(sample_texts).input_ids
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.special_tokens_map == tokenizer.special_tokens_map


@pytest.mark.parametrize("byte_level", [False, True])
def test_vocabulary_and_special_tokens(nb, sample_texts, byte_level):
    trained = nb["train_tokenizer"](sample_texts, 500, byte_level)
    assert len(trained) == 500
    assert trained.convert_tokens_to_ids(["<unk>", "<bos>", "<eos>", "<pad>"]) == [0, 1, 2, 3]


def test_prompt_begins_with_bos_and_has_no_eos(tokenizer):
    ids = tokenizer("Нет, жизнь не кончена").input_ids
    assert ids[0] == tokenizer.bos_token_id and tokenizer.eos_token_id not in ids


def test_special_strings_in_a_text_stay_text(tokenizer, nb):
    assert tokenizer.eos_token_id not in nb["encode"](["он сказал <eos> и ушел"], tokenizer)[0]


def test_unknown_characters_do_not_break_encoding(tokenizer):
    assert tokenizer.unk_token_id in tokenizer("漢字").input_ids


def test_chars_per_token_counts_all_characters(tokenizer, nb):
    text = "Да. Нет. Не знаю."
    assert nb["chars_per_token"]([text], tokenizer) == len(text) / len(nb["encode"]([text], tokenizer)[0])


def test_blocks_hold_every_character_once(nb, tokenizer, sample_texts):
    blocks = nb["pack_texts"](sample_texts, tokenizer, 128)
    decoded = "".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in blocks["input_ids"])
    assert decoded == "".join(sample_texts)


def test_block_layout(nb, tokenizer, sample_texts):
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    for row in nb["pack_texts"](sample_texts, tokenizer, 128):
        assert len(row["input_ids"]) == len(row["attention_mask"]) == len(row["labels"]) == 128
        length = sum(row["attention_mask"])
        assert row["input_ids"][0] == bos and row["input_ids"][length:] == [pad] * (128 - length)
        assert row["labels"] == row["input_ids"][:length] + [-100] * (128 - length)
        assert row["input_ids"][1:length].count(eos) == (row["input_ids"][length - 1] == eos)


def test_blocks_end_at_sentence_ends(nb, tokenizer):
    text = " ".join(f"Это предложение номер {n}, и оно кончается точкой." for n in range(60))
    for ids in nb["pack_texts"]([text], tokenizer, 128)["input_ids"]:
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith("точкой.")
        assert tokenizer.eos_token_id in ids


def test_sentence_longer_than_a_block_is_cut_without_a_false_ending(nb, tokenizer):
    text = "и шел, " * 200 + "и пришел."
    blocks = nb["pack_texts"]([text], tokenizer, 128)["input_ids"]
    assert "".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in blocks) == text
    assert [tokenizer.eos_token_id in ids for ids in blocks] == [False] * (len(blocks) - 1) + [True]


def test_texts_do_not_share_a_block_and_empty_ones_give_none(nb, tokenizer):
    assert len(nb["pack_texts"](["Да.", "", "Нет."], tokenizer, 64)) == 2


def test_cut_blocks_is_greedy(nb):
    cut = list(nb["cut_blocks"]([[1] * 3, [2] * 3, [3] * 4, [4] * 25], room=10))
    assert [(len(ids), ended) for ids, ended in cut] == [(10, True), (10, False), (10, False), (5, True)]
