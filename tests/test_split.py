"""Section 3: groups and parts of works, repeats between works, nothing of the held-out parts in train."""

import json
import os
import random
import re
import subprocess
import sys
import time

import pytest
from conftest import ROOT, run_forked

VALIDATION = """Dostoyevsky_BednyeLyudi Gippius_ChertovayaKukla Krjukov_Zyb Nabokov_Mashenka_1926 Pushkin_Dubrovsky
Tur_Starushka Turgenev_Rudin""".split()
TEST = "Bulgakov_BelayaGvardiya Durova_IgraSudby Gogol_Mertvye Nabokov_Veschi_1972_Ilin".split()


@pytest.fixture(scope="module")
def listed():
    lines = (ROOT / "data" / "blobs-0398a12.txt").read_text(encoding="utf-8")
    return [name.removesuffix(".txt") for name in re.findall("corpus/(.+)", lines)]


def part_of(split: dict, part: str) -> list:
    return sorted(name for name, its in split.items() if its == part)


def test_groups_of_the_listed_corpus(nb, listed):
    together = {}
    for name, group in nb["group_works"](listed).items():
        together.setdefault(group, set()).add(name)
    several = sorted((sorted(names) for names in together.values() if len(names) > 1), key=str)
    assert several == [
        [f"Dostoyevsky_Karamazow{i}" for i in range(1, 5)],
        [f"Gorky_ZyznKlimaSamgina{i}" for i in range(1, 5)],
        [f"Nabokov_Pnin_1957_{name}" for name in ("Barabtarlo", "Ilin", "Nosik")],
        [*(f"Tolstoi_VoynaIMir{i}" for i in range(1, 5)), "Tolstoi_VoynaIMir_ver1"],
        ["Vovchok_Zapiski prichyotnika", "Vovchok_ZapiskiPrichyotnika"],
    ]


TOGETHER = """Сад 1|Сад 2|сад (3)|Сад_4|Сад5|Сад, часть вторая|Сад. Том 12
Сад. Том I. Весна|САД. Книга третья|Том 7. Сад|Сад II
Author_Title|Author_Title_ver1|Author_Title_1957_Ilin|Author_TitleTwo|author_title part 2|Author_Title2-6
Тихий дом. 2-я часть|Тихий_Дом|ТихийДом1|Тихий дом, вторая часть"""
APART = """Хроника 1812|Хроника 1905|Хроника
Орлов_1984|Орлов_Сад|Орлов_Лес
Сад|Садовник|Садовая улица
01 Мельница|02 Колодец|Моя книга|Моя часть"""


@pytest.mark.parametrize("names", TOGETHER.split("\n"))
def test_volumes_and_editions_are_one_group(nb, names):
    names = names.split("|")
    groups = nb["group_works"]([*names, "Ключ", "Обоз", "Межа"])
    assert len({groups[name] for name in names}) == 1 and len(set(groups.values())) == 4


@pytest.mark.parametrize("names", APART.split("\n"))
def test_other_works_are_other_groups(nb, names):
    names = names.split("|")
    groups = nb["group_works"]([*names, "Ключ", "Обоз", "Межа"])
    assert len({groups[name] for name in names}) == len(names)


def test_many_names_and_bare_numbers(nb):
    """Two thousand names take seconds; where all else is equal, numbers are no volumes."""
    names = [f"Автор{i % 97}_{''.join(random.Random(i).choices('абвгдежзик', k=9))}" for i in range(2000)]
    began = time.perf_counter()
    groups = nb["group_works"](names)
    assert time.perf_counter() - began < 3 and list(groups) == names
    assert len(set(nb["group_works"]([f"book{i}" for i in range(6)]).values())) == 6


def test_fixed_parts(nb, listed):
    split, groups = nb["split_works"](listed), nb["group_works"](listed)
    assert part_of(split, "test") == sorted(TEST) and part_of(split, "validation") == sorted(VALIDATION)
    assert all(split[a] == split[b] for a in groups for b in groups if groups[a] == groups[b])
    more = nb["split_works"]([*listed, "Gogol_Mertvye2", "gogol_mertvye_1900_Someone", "Turgenev_Rudin_ver1"])
    assert len(part_of(more, "test")) == 6 and more["Turgenev_Rudin_ver1"] == "validation"


@pytest.mark.parametrize("count", [3, 4, 14, 15, 40])
def test_split_of_another_corpus(nb, count):
    names = [f"Автор_Сад{chr(1040 + i % 32)}{'абв'[i // 32]}{volume}" for i in range(count) for volume in (1, 2)]
    split = nb["split_works"](names)
    assert split == nb["split_works"](reversed(names)) and split[min(names)] == "train"
    assert all(split[name] == split[f"{name[:-1]}2"] for name in names)
    for part in ("validation", "test"):
        assert len(part_of(split, part)) == 2 * {3: 1, 4: 1, 14: 1, 15: 2, 40: 4}[count]


def test_fixed_works_that_would_leave_a_part_empty(nb):
    for names in (["Gogol_Mertvye", "Gogol_Viy", "Gogol_Taras"], [TEST[0], VALIDATION[0], TEST[1]]):
        assert set(nb["split_works"](names).values()) == {"train", "validation", "test"}
    with pytest.raises(ValueError, match="CORPUS"):
        nb["split_works"](["A_B", "C_D"])


def test_cut_work(nb):
    """Whole sentences, nothing lost, names that are no volumes of each other."""
    text = "\n".join(f"Это предложение {i}. За ним другое." for i in range(37))
    pieces = nb["cut_work"]("Сад", text)
    assert len(pieces) == 10 == len(set(nb["group_works"](pieces).values()))
    assert " ".join(pieces.values()).split() == text.split()
    assert all(piece.endswith(".") and 5 <= piece.count(".") <= 9 for piece in pieces.values())
    assert list(nb["cut_work"]("Сад", "Одно. Два.").values()) == ["Одно.", "Два."]


def words(seed: int, count: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("абвгдежзик", k=6)) for _ in range(count))


def test_ngrams(notebook, nb):
    """Up to the last one; punctuation, case and breaks do not count; alike whatever the seed of Python's own hash."""
    table = nb["list_ngrams"]("а б в\n\nг — Д е.", 3)
    assert table[["first", "last"]].values.tolist() == [[0, 0], [0, 2], [0, 2], [2, 2]] and table["ngram"].is_unique
    assert table["ngram"].tolist() == nb["list_ngrams"]("А, б в г д е", 3)["ngram"].tolist()
    assert [len(nb["list_ngrams"](words(1, count))) for count in (0, 12, 13, 14)] == [0, 0, 1, 2]
    cell = next(cell.source for cell in notebook.cells if "def list_ngrams" in cell.source)
    code = f"""import numpy as np, pandas as pd, regex as re
from collections.abc import Iterable
from functools import cache
{cell}
print(list_ngrams("а б в г", 3)["ngram"].tolist())"""
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True
        ).stdout
        for seed in "12"
    }
    assert len(outputs) == 1 and outputs != {b""}


PARTS = {"a": "train", "b": "validation", "c": "test", "d": "test", "e": "train"}


def repeats(nb, **texts) -> dict:
    return nb["drop_repeats"](texts, {name: PARTS[name[0]] for name in texts})


def test_who_gives_way(nb):
    """The test stays whole, validation gives way to it, train to both, early versions to later ones."""
    shared = words(1)
    texts = {name: f"{words(ord(name))}\n{shared}" for name in "abcd"} | {"e_ver": words(7), "e_x": words(7)}
    kept = repeats(nb, **texts)
    assert kept == texts | {"a": words(ord("a")), "b": words(ord("b")), "e_ver": ""}
    refrain = "\n".join([words(1)] * 3)
    assert repeats(nb, a=refrain, e=words(2)) == {"a": refrain, "e": words(2)}


@pytest.mark.parametrize("count, stays", [(27, True), (28, False)])
def test_share_of_a_paragraph(nb, count, stays):
    """Of the 50 13-grams that begin in a line 15 or 16 are known: 30% stays, more goes."""
    own = f"{words(2, count)}"
    line = f"{own} {words(3, 50 - count)}"
    kept = repeats(nb, a=f"{own}\n{words(4)}", e=f"{line}\n{words(5)}")
    assert kept["e"] == (f"{line}\n{words(5)}" if stays else words(5))


def test_short_lines(nb):
    """Replies between repeated paragraphs go with them, the same replies elsewhere stay."""
    scene = f"{words(1)}\n— Да.\n— Нет.\n{words(2)}"
    kept = repeats(nb, a=scene, e=f"{words(3)}\n— Да.\n{scene}\n— Да.\n{words(4)}")
    assert kept == {"a": scene, "e": f"{words(3)}\n— Да.\n— Да.\n{words(4)}"}


@pytest.mark.parametrize("held_out", ["b", "c"])
def test_nothing_of_the_held_out_parts_is_left_in_train(nb, held_out):
    """One 13-gram amid a long paragraph, at the very end of it, or across lines; twelve words are none."""
    prayer = words(9, 13)
    quoted = f"{words(8)} {prayer}"
    lines = {
        "amid": f"{words(1)} {prayer} {words(2)}",
        "across": f"{words(3)} {prayer[:20]}\n{prayer[21:]} {words(4)}",
        "twelve": f"{words(5)} {prayer.rpartition(' ')[0]}",
    }
    text = "\n".join([words(10), lines["amid"], words(11), lines["across"], words(12), lines["twelve"]])
    kept = repeats(nb, a=text, **{held_out: f"{quoted}\n{words(13)}"})
    assert kept["a"] == "\n".join([words(10), words(11), words(12), lines["twelve"]])
    assert kept[held_out] == f"{quoted}\n{words(13)}"
    assert repeats(nb, a=text, e=quoted)["a"] == text, "a quotation within train is no repeat"


def tale(seed: int, paragraphs: int) -> list[str]:
    """Paragraphs of six sentences, no 13-gram of which comes twice."""
    return [" ".join(f"Старик {words(seed * 997 + 6 * i + j, 7)}." for j in range(6)) for i in range(paragraphs)]


PRAYER = "не торопи коня на крутой горе не ругай дождь в сенокос не суди соседа за столом"


def quoting(i: int, mark: str) -> str:
    text = tale(i, 12)
    text[i % 12] += f" Он повторял: {PRAYER}, и вздыхал. {tale(i + 50, 1)[0]}"
    return mark.join(text)


def neighbours() -> dict[str, str]:
    """Where a repeated line goes, the lines around it meet as they do in the test, which is the last work."""
    texts, (line, *_) = {f"kniga_{x}": tale(i + 60, 4) for i, x in enumerate("abcdefghijk")}, tale(99, 1)
    texts["kniga_k"] += [line, f"{words(71, 7)} {words(72, 7)}."]
    texts["kniga_a"] += [words(71, 7), line, words(72, 7)]
    return {name: "\n".join(lines) for name, lines in texts.items()}


CORPORA = {
    "neighbours": neighbours(),
    "copies": {name: "\n".join(tale(1, 30)) for name in ("odin", "dva", "tri")},
    "long_and_short": {"a": tale(2, 1)[0], "b": tale(3, 1)[0], "yadlinnaya": "\n".join(tale(4, 40))},
    "one_line": {"odin": " ".join(tale(5, 40))},
    "quotations": {f"tale{chr(97 + i)}": quoting(i, "\n") for i in range(11)},
    "quotations_in_one_line": {f"tale{chr(97 + i)}": quoting(i, " ") for i in range(11)},
}


def run_section(notebook, nb, folder, texts: dict[str, str], then: str = ""):
    script = f"clean, theme_hits, metrics = {texts!r}, Counter(), {{'corpus': {{}}}}"
    return run_forked(notebook, nb, [3], folder / "out", script=script, then=then)


@pytest.mark.parametrize("name", CORPORA)
def test_odd_corpora(notebook, nb, tmp_path, name):
    """The section fills all parts, keeps most of the text, and leaves no 13-gram of the held-out parts in train."""
    then = "print(json.dumps([metrics['corpus'], train_texts, validation_texts, test_texts]))"
    run = run_section(notebook, nb, tmp_path, CORPORA[name], then)
    assert run.returncode == 0, run.stdout[-2000:]
    counts, *parts = json.loads(run.stdout.splitlines()[-1])
    assert all(parts) and counts["leaked_share"] == 0 and min(parts[0]) <= min(parts[1] | parts[2])
    grams = [set(), set(), set()]
    for found, texts in zip(grams, parts, strict=True):
        for text in texts.values():
            run = re.findall(r"\w+", text.lower())
            found |= {tuple(run[i : i + 13]) for i in range(len(run) - 12)}
    assert grams[0] and not grams[0] & (grams[1] | grams[2])
    size = sum(len(text) for texts in parts for text in texts.values())
    assert size > 0.7 * sum(map(len, set(CORPORA[name].values()))) and sum(map(len, parts[0].values())) > size / 2


@pytest.mark.parametrize("texts", [["\n".join(tale(1, 9) + tale(i, 1)) for i in (2, 3, 4)], ["Да."], []])
def test_too_little_is_one_sentence(notebook, nb, tmp_path, texts):
    run = run_section(notebook, nb, tmp_path, {f"kniga_{'abc'[i]}": text for i, text in enumerate(texts)})
    assert run.returncode == 1 and re.match("ValueError: CORPUS", run.stdout.splitlines()[-1])


def test_table_of_the_assignment(notebook, nb, tmp_path):
    """Works and paragraphs removed, recounted: two equal works, of which the held-out one stays, and two paragraphs."""
    texts = {f"kniga_{x}": "\n".join(tale(i, 4)) for i, x in enumerate("abcdefgh")}
    texts |= {"Gogol_Mertvye": texts["kniga_a"], "Aaa": texts["kniga_a"]}
    texts["kniga_i"] = "\n".join(tale(1, 2) + tale(70, 2))
    then = "print([*map(int, cleaned_away['сколько'])], 'Gogol_Mertvye' in unrepeated, len(unrepeated))"
    run = run_section(notebook, nb, tmp_path, texts, then)
    assert run.stdout.splitlines()[-1] == "[2, 2, 0, 0, 0] True 9"
