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


def test_spans_are_greedy_and_respect_sentences_and_texts(nb):
    np = nb["np"]
    stream = nb["TokenStream"](np.zeros(45), sentence_ends=np.array([3, 6, 10, 35, 41, 45]), text_ends=np.array([41, 45]))
    assert list(stream.spans(10)) == [(0, 10), (10, 20), (20, 30), (30, 35), (35, 41), (41, 45)]


@pytest.fixture
def cuts(nb, sample_texts, tokenizer):
    return nb["FreshCuts"](nb["tokenize_texts"](sample_texts, tokenizer), tokenizer, 128, seed=1)


def begin_epoch(nb, cuts, epoch: int):
    cuts.on_epoch_begin(None, nb["transformers"].TrainerState(epoch=float(epoch)), None)


def test_fresh_cuts_are_whole_sentences_and_change_with_the_epoch_alone(nb, cuts, sample_texts, tokenizer):
    np, fresh = nb["np"], cuts.dataset()
    assert len(fresh) == len(nb["pack_texts"](sample_texts, tokenizer, 128))
    first = fresh[:]
    assert all((a == b).all() for a, b in zip(first["input_ids"], fresh[:]["input_ids"]))
    begin_epoch(nb, cuts, 1)
    assert not all((a == b).all() for a, b in zip(first["input_ids"], fresh[:]["input_ids"]))
    sentences = {tuple(ids) for text in sample_texts for ids in nb["encode"](nb["split_sentences"](text), tokenizer)}
    texts = "".join(sample_texts)
    for ids, mask, labels in zip(first["input_ids"], first["attention_mask"], first["labels"]):
        assert len(ids) == 128 and (labels == np.where(mask == 1, ids, -100)).all()
        assert ids[0] == tokenizer.bos_token_id and tokenizer.decode(ids, skip_special_tokens=True) in texts
        whole = any(tuple(ids[1:n]) in sentences for n in range(2, 128))
        assert whole == (tokenizer.eos_token_id in ids)  # only a sentence longer than the block has no end in it


def test_fresh_cuts_begin_at_most_sentences_within_a_few_epochs(nb, cuts):
    seen = set()
    for epoch in range(12):
        begin_epoch(nb, cuts, epoch)
        seen |= {ids[1:6].tobytes() for ids in cuts.dataset()[:]["input_ids"]}
    starts = [s for s in cuts.starts if s + 5 <= len(cuts.stream.tokens)]
    missed = [s for s in starts if cuts.stream.tokens[s:s + 5].astype("int64").tobytes() not in seen]
    assert len(missed) < 0.35 * len(starts)
