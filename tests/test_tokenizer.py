"""Section 4: what one token is, and that no text is changed on its way through them."""
import re

import pytest


@pytest.fixture(scope="module", params=[False, True], ids=["letters", "bytes"])
def trained(request, nb, sample_texts):
    return nb["train_tokenizer"]((text for text in sample_texts), 500, request.param)


def test_vocabulary_and_special_tokens(trained):
    assert len(trained) == 500
    assert trained.convert_tokens_to_ids(["<unk>", "<bos>", "<eos>", "<pad>"]) == [0, 1, 2, 3]
    assert (trained.unk_token_id, trained.bos_token_id, trained.eos_token_id, trained.pad_token_id) == (0, 1, 2, 3)


def test_round_trip(trained, nb, sample_texts):
    for text in [*sample_texts, "Рыба, раз.\n\n— Да  ли?.. №5 , 20° !", " с пробела", ""]:
        [ids] = nb["encode"]([text], trained)
        assert trained.decode(ids) == text and not {0, 1, 2, 3} & {*ids}


def test_saved_tokenizer_is_loaded_back_identically(trained, nb, tmp_path, sample_texts):
    trained.save_pretrained(tmp_path)
    loaded = nb["AutoTokenizer"].from_pretrained(tmp_path)
    assert loaded(sample_texts).input_ids == trained(sample_texts).input_ids
    assert loaded.get_vocab() == trained.get_vocab() and loaded.special_tokens_map == trained.special_tokens_map
    assert loaded.decode(loaded("Он сказал , да .").input_ids, skip_special_tokens=True) == "Он сказал , да ."


def test_a_prompt_begins_with_bos_and_has_no_eos(trained, nb):
    ids = trained("Нет, жизнь не кончена").input_ids
    assert ids == [trained.bos_token_id, *nb["encode"](["Нет, жизнь не кончена"], trained)[0]]


def test_special_strings_in_a_text_stay_text(trained, nb):
    text = "он сказал <eos><bos> и <pad> ушел"
    assert not {1, 2, 3} & {*nb["encode"]([text], trained)[0]}


def test_the_most_frequent_pairs_are_merged(nb):
    """Six merges by hand: the pairs к+о, о+т and then ␣+кот stand in every text of these most often, и+т twice."""
    letters = len(nb["SPECIAL_TOKENS"]) + len(nb["LETTERS"])
    few = nb["train_tokenizer"](["кот ест, кот спит, кот молчит"] * 2, letters + 6)
    assert len(few) == letters + 6 and {"ко", "кот", " кот", "ит"} <= few.get_vocab().keys()
    assert few.tokenize("кот кот ток") == ["кот", " кот", " ", "т", "о", "к"]


def test_no_token_reaches_over_a_word(nb, sample_texts):
    """A word with the space before it, one digit, a run of signs, one line break: nothing longer is ever one token."""
    tokens = nb["train_tokenizer"](sample_texts, 900).get_vocab().keys() - nb["SPECIAL_TOKENS"].values()
    assert [t for t in tokens if not re.fullmatch(r" ?[^\W\d_]+| ?\d| ?[^\w\s]+|\s", t)] == []
    assert any(token[0] == " " and len(token) > 4 for token in tokens)


def test_letters_that_training_did_not_meet_have_tokens(nb):
    """All that cleaning lets through is spelled by both alphabets; another script only by bytes."""
    letters, by_bytes = (nb["train_tokenizer"](["а б в"], 400, byte_level) for byte_level in (False, True))
    allowed = "АБЯабя059 \n.,!?…:;—«»()'№%°*-"
    for tokenizer in (letters, by_bytes):
        assert tokenizer.decode(nb["encode"]([allowed], tokenizer)[0]) == allowed
    assert letters.unk_token_id in nb["encode"](["漢"], letters)[0] and by_bytes.decode(nb["encode"](["漢"], by_bytes)[0]) == "漢"
