"""Section 5: texts become rows of equal length, cut at sentence ends."""

import pytest


@pytest.mark.parametrize(
    "sentences, blocks",
    [
        (
            [[1, 2], [3, 4], [5, 6, 7], [*range(10, 22)], [30], [31, 32, 33, 34, 35]],
            [[1, 2, 3, 4], [5, 6, 7], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19], [20, 21, 30], [31, 32, 33, 34, 35]],
        ),
        ([[1, 2, 3], [4, 5]], [[1, 2, 3, 4, 5]]),  # just fits
        ([[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 5, 6]]),  # one too many
        ([[*range(10)]], [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]),
        ([[*range(6)]], [[0, 1, 2, 3, 4], [5]]),
        ([], []),
    ],
)
def test_blocks_are_filled_with_whole_sentences(nb, sentences, blocks):
    before = [[*sentence] for sentence in sentences]
    assert nb["cut_blocks"](iter(sentences), 5) == blocks and sentences == before


@pytest.mark.parametrize("length", [32, 128])
def test_rows_are_bos_text_eos_padding(nb, tokenizer, sample_texts, length):
    """Every token of every text once, in order; the padding alone has label -100, and no row holds two texts."""
    bos, eos, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    texts = [*sample_texts[:5], "", "Да."]
    rows = nb["pack_texts"]((text for text in texts), tokenizer, length)
    assert isinstance(rows, nb["Dataset"]) and rows.column_names == ["input_ids", "labels"]
    bodies = []
    for ids, labels in zip(rows["input_ids"], rows["labels"]):
        end = ids.index(eos)
        assert len(ids) == len(labels) == length and ids[0] == bos and ids.count(bos) == ids.count(eos) == 1
        assert ids[end + 1 :] == [pad] * (length - end - 1) and labels == ids[: end + 1] + [-100] * (length - end - 1)
        bodies.append(tokenizer.decode(ids[1:end]))
    assert "".join(bodies) == "".join(texts) and bodies[-1] == "Да."
    assert sum(len(body) > 3 for body in bodies) > 5


def test_a_row_takes_as_many_sentences_as_fit(nb, tokenizer):
    """Whole sentences, up to `length` with both marks, and the first one of the next row had no room."""
    text = " ".join(f"Это предложение номер {n}, и оно кончается точкой." for n in range(60))
    for length in (100, 128):
        rows = [[i for i in ids if i > 3] for ids in nb["pack_texts"]([text], tokenizer, length)["input_ids"]]
        for row, following in zip(rows, rows[1:]):
            first = nb["encode"](nb["split_sentences"](tokenizer.decode(following))[:1], tokenizer)[0]
            assert tokenizer.decode(row).endswith("точкой.") and len(row) <= length - 2 < len(row) + len(first)


@pytest.mark.parametrize("spare, rows", [(2, 1), (3, 1), (1, 2)])
def test_a_text_that_just_fits_is_one_row(nb, tokenizer, spare, rows):
    """Both marks need room, and no more than that."""
    text = "Вечер был тих. Лодка стояла у самого берега."
    size = len(nb["encode"]([text], tokenizer)[0])
    assert len(nb["pack_texts"]([text], tokenizer, size + spare)) == rows
