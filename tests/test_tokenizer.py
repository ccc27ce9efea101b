"""Section 4: what one token is, and that no text is changed on its way through them."""

import re


def test_vocabulary_and_special_tokens(nb, tokenizer, sample_texts):
    assert len(tokenizer) == 600 and [len(nb["train_tokenizer"](sample_texts, size)) for size in (500, 501)] == [
        500,
        501,
    ]
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<bos>", "<eos>", "<pad>"]) == [0, 1, 2, 3]
    assert (tokenizer.unk_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        0,
        1,
        2,
        3,
    )


def test_round_trip_also_after_loading(nb, tokenizer, sample_texts, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = nb["AutoTokenizer"].from_pretrained(tmp_path)
    texts = [
        *sample_texts,
        "Рыба, раз.\n\n— Да  ли?.. №5 , 20° !",
        " с пробела",
        "",
        "он сказал <eos><bos> и <pad>"[:9],
    ]
    for each in (tokenizer, loaded):
        encoded = nb["encode"](texts, each)
        assert each.batch_decode(encoded) == texts and not {0, 1, 2, 3} & {*sum(encoded, [])}
        assert each.decode(each("Он сказал , да .").input_ids, skip_special_tokens=True) == "Он сказал , да ."
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.model_input_names == ["input_ids", "attention_mask"]


def test_a_prompt_begins_with_bos_and_a_text_has_no_special_token(nb, tokenizer):
    text = "Нет, жизнь не кончена"
    assert tokenizer(text).input_ids == [tokenizer.bos_token_id, *nb["encode"]([text], tokenizer)[0]]
    assert not {1, 2, 3} & {*nb["encode"](["он сказал <eos><bos> и <pad> ушел"], tokenizer)[0]}


def test_the_most_frequent_pairs_are_merged(nb):
    """Six merges by hand: к+о, ко+т and ␣+кот are met most often."""
    letters = len(nb["SPECIAL_TOKENS"]) + len(nb["SIGNS"])
    few = nb["train_tokenizer"](["кот ест, кот спит, кот молчит"] * 2, letters + 6)
    assert len(few) == letters + 6 and {"ко", "кот", " кот", "ит"} <= few.get_vocab().keys()
    assert few.tokenize("кот кот ток") == ["кот", " кот", " ", "т", "о", "к"]


def test_no_token_reaches_over_a_word(nb, sample_texts):
    """A word with the space before it, one digit, a run of signs, one line break: nothing longer is ever one token."""
    tokens = (
        nb["train_tokenizer"]([*sample_texts, "1812 1812, 1812!.. " * 50], 900).get_vocab().keys()
        - nb["SPECIAL_TOKENS"].values()
    )
    assert [t for t in tokens if not re.fullmatch(r" ?[^\W\d_]+| ?\d| ?[^\w\s]+|\s", t)] == []
    assert any(token[0] == " " and len(token) > 4 for token in tokens) and " 1" in tokens


def test_all_that_cleaning_leaves_has_tokens(nb):
    """Every sign of the alphabet, wherever it stands in Unicode, though training met three of them; another script is unknown."""
    few = nb["train_tokenizer"](["а б в"], 400)
    text = "".join(re.findall(f"[{nb['ALPHABET']}]", "".join(map(chr, range(0xD800)))))
    assert len(text) > 90 and few.decode(nb["encode"]([text], few)[0]) == text
    assert few.unk_token_id in nb["encode"](["漢"], few)[0]
