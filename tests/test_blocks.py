"""Section 5: texts become rows of equal length, cut at sentence ends."""
import numpy as np
import pytest


def test_blocks_are_filled_with_whole_sentences(nb):
    """By hand, five tokens to a block: the third sentence starts a new one, the fourth is longer than a block and is cut inside."""
    sentences = [[1, 2], [3, 4], [5, 6, 7], list(range(10, 22)), [30], [31, 32, 33, 34, 35]]
    assert list(nb["cut_blocks"](sentences, 5)) == [
        ([1, 2, 3, 4], True), ([5, 6, 7], True), ([10, 11, 12, 13, 14], False), ([15, 16, 17, 18, 19], False), ([20, 21, 30], True),
        ([31, 32, 33, 34, 35], True)]
    assert list(nb["cut_blocks"]([[1, 2, 3], [4, 5]], 5)) == [([1, 2, 3, 4, 5], True)] and list(nb["cut_blocks"]([], 5)) == []


def test_every_token_stands_in_one_row(nb, tokenizer, sample_texts):
    blocks = nb["pack_texts"]((text for text in sample_texts), tokenizer, 128)
    decoded = "".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in blocks["input_ids"])
    assert decoded == "".join(sample_texts) and isinstance(blocks, nb["Dataset"])


@pytest.mark.parametrize("length", [32, 128])
def test_rows_are_bos_text_eos_padding(nb, tokenizer, sample_texts, length):
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    for row in nb["pack_texts"](sample_texts[:5], tokenizer, length):
        ids, filled = row["input_ids"], sum(row["attention_mask"])
        assert len(ids) == len(row["attention_mask"]) == len(row["labels"]) == length
        assert ids[0] == bos and ids.count(bos) == 1 and ids[filled:] == [pad] * (length - filled) and pad not in ids[:filled]
        assert row["attention_mask"] == [1] * filled + [0] * (length - filled)
        assert row["labels"] == ids[:filled] + [-100] * (length - filled)
        assert ids.count(eos) == (ids[filled - 1] == eos)


def test_padding_stands_at_the_right_whatever_the_tokenizer_is_set_to(nb, tokenizer, sample_texts, monkeypatch):
    """As after a generation, which pads prompts at the left and leaves that in the saved tokenizer."""
    rows = nb["pack_texts"](sample_texts[:2], tokenizer, 64)[:]
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    assert nb["pack_texts"](sample_texts[:2], tokenizer, 64)[:] == rows


def test_a_row_takes_as_many_sentences_as_fit(nb, tokenizer):
    text = " ".join(f"Это предложение номер {n}, и оно кончается точкой." for n in range(60))
    blocks = nb["pack_texts"]([text], tokenizer, 128)
    filled = np.sum(blocks["attention_mask"][:], axis=1)
    for ids, count, following in zip(blocks["input_ids"], filled, [*blocks["input_ids"][1:], None]):
        assert tokenizer.decode(ids, skip_special_tokens=True).endswith("точкой.") and tokenizer.eos_token_id in ids
        if following:  # its first sentence had no room here
            first = nb["split_sentences"](tokenizer.decode(following, skip_special_tokens=True))[0]
            assert count + len(nb["encode"]([first], tokenizer)[0]) > 128


def test_a_row_may_be_full_to_its_last_token(nb, tokenizer):
    text = "Она пошла домой, и он пошел."
    count = len(nb["encode"]([text], tokenizer)[0])
    [row] = nb["pack_texts"]([text], tokenizer, count + 2)
    assert row["attention_mask"] == [1] * (count + 2) and row["input_ids"][-1] == tokenizer.eos_token_id
    cut = nb["pack_texts"]([text], tokenizer, count + 1)["input_ids"]
    assert len(cut) == 2 and tokenizer.eos_token_id not in cut[0] and tokenizer.eos_token_id in cut[1]


def test_a_sentence_longer_than_a_row_is_cut_without_a_false_ending(nb, tokenizer):
    text = "и шел, " * 200 + "и пришел."
    blocks = nb["pack_texts"]([text], tokenizer, 128)["input_ids"]
    assert "".join(tokenizer.decode(ids, skip_special_tokens=True) for ids in blocks) == text
    assert [tokenizer.eos_token_id in ids for ids in blocks] == [False] * (len(blocks) - 1) + [True]


def test_texts_do_not_share_a_row_and_empty_ones_give_none(nb, tokenizer):
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in nb["pack_texts"](["Да.", "", "Нет."], tokenizer, 64)["input_ids"]] == [
        "Да.", "Нет."]
