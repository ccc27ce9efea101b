"""Section 2: kinds of dirt and what must survive, through `clean_work`; boundaries of its rules; its counts, recounted."""

import json
import re

import pytest
from conftest import run_forked

PROSE = (
    "Утро было тихое, и над рекой стоял туман; лодки у берега еще спали, и только сторож ходил по мосткам, стуча "
    "сапогами да покашливая."
)
OLD = "Въ одинъ изъ лѣтнихъ дней сторожъ, человѣкъ больной и одинокій, ходилъ по мосткамъ, а новыя сѣти висѣли."
OLD_CLEAN = "В один из летних дней сторож, человек больной и одинокий, ходил по мосткам, а новые сети висели."

FOLDED = [  # what is typed, what it means
    ('Ещё вчера он сказал: "Пора" --\u00a0и вышел', "Еще вчера он сказал: «Пора» — и вышел"),
    ("Кто\u2010то из\u2011за печки по\u2012русски и по–старому", "Кто-то из-за печки по-русски и по-старому"),
    ("Он сел \u2015 и \u2212 умолк – навек - вот", "Он сел — и — умолк — навек — вот"),
    ("„Да“, “нет”, ‹может›, 'быть' ''так''", "«Да», «нет», «может», «быть» «так»"),
    ("Он\u2009вошел\u200b\ufeff,\u3000сел\tи\u202fждал", "Он вошел, сел и ждал"),
    ("Всë, всѐ, чєловек, мoре, дοм, їх, моја", "Все, все, человек, море, дом, их, мойа"),
    ("Мои\u0306 зеленыи\u0306 е\u0308жик и за\u0301мок", "Мой зеленый ежик и замок"),
    ("<p>Он <b>сам</b></p><p>&laquo;Да&raquo;&amp;nbsp;&mdash; нет</p>", "\nОн сам\n\n«Да» — нет\n"),
    ("Она _никогда_ и **никуда** не *ходила*, [b]нет[/b]", "Она никогда и никуда не ходила, нет"),
    ("Г* и N*** из ***ской губернии в ** году", "Г*** и Н*** из ***ской губернии в *** году"),
    ("Он ждал... долго….. . .", "Он ждал… долго…"),
    ("Да,, нет!!!! Как???? Куда!? Что!!!", "Да, нет!!! Как??? Куда?! Что!!!"),
    ("Неужели?... Да!… Ну?!", "Неужели?.. Да!.. Ну?!"),
    ("Он вошел , сел ( так ) .Она :нет", "Он вошел, сел (так). Она: нет"),
    ("Город .правда, далеко", "Город. правда, далеко"),
    ("Он хотел ему —. Но пламя погасло", "Он хотел ему… Но пламя погасло"),
    ("½ фунта, дом № 5, N_13 и No 7", "1/2 фунта, дом № 5, № 13 и № 7"),
    ("Пг’авда, чог'т", "Пг'авда, чог'т"),
]


@pytest.mark.parametrize(("typed", "expected"), FOLDED)
def test_fold(nb, typed, expected):
    assert nb["fold"](typed) == expected
    assert nb["fold"](expected) == expected


LATIN = [
    ("Король XLII и XC, XIV-XX века, в XХ году", "Король 42 и 90, 14-20 века, в 20 году"),
    ("Николай I и глава V", "Николай 1 и глава 5"),
    ("мистер R. и княгиня X. молчали", "мистер Р. и княгиня Х. молчали"),
    ("в главе X говорится", "в главе Х говорится"),
    ("Bce ждали, a он молчал. He плачь, HET", "Все ждали, а он молчал. Не плачь, НЕТ"),
    ("B доме у B. было тихо", "В доме у Б. было тихо"),
    ("m-me Денисова, m-mе Х. и Mademoiselle", "мадам Денисова, мадам Х. и Мадемуазель"),
    ("Mon cher Nicolas, где maman?", "Мон шер Николя, где маман?"),
    ("N-ский полк в городе NN", "Н-ский полк в городе НН"),
    ("la maman R. chez nous", "la maman R. chez nous"),
    ("cobra и cor", "cobra и cor"),
]


@pytest.mark.parametrize(("raw", "expected"), LATIN)
def test_latin_that_can_be_russian(nb, raw, expected):
    text, letters = nb["replace_latin"](raw)
    count = lambda text: len(re.findall("[A-Za-z]", text))
    assert (text, letters) == (expected, count(raw) - count(expected))


KEPT = {
    "replies": "— Да! — сказал он. — Иду.\n— …\n— Да.\n— Да.",
    "hyphens": "Кто-то из-за угла; по-русски, Ростов-на-Дону. Двух- и трехэтажные дома. 1812—1832.",
    "verse without marks": "Под окном цветет сирень\nВозле старого колодца\nПо траве уходит день\nИ обратно не вернется",
    "long verse": "Когда над нашим старым садом медленно встает рассвет,\nИ первый луч ложится косо на холодные перила,\n"
    "Я вспоминаю тихий дом, которого давно на свете нет.",
    "play in line": "КОРОЛЬ. Кто там?\nШУТ (кланяясь). Это я.\nКОРОЛЬ. Входи.",
    "words like old ones": "Благо, что он молчал; живая статуя, здания, ее и нее, отъезд, съезд, шага нет, рожь.",
    "brackets with a pronoun": "Он молчал (что в нем было странного, она не знала, она не думала о нем.) и ждал.",
    "numbered rules": "1. Безусловно воспрещается покидать здание тюрьмы.\n2. Кротость узника есть украшение.",
    "sign": "На двери было написано:\nБЮРО ПРЕТЕНЗИЙ\nОн постучал.",
    "short sentences": "Да. Нет. Да.",
}


@pytest.mark.parametrize("kind", KEPT)
def test_good_text_is_kept(nb, kind):
    assert nb["clean_work"](KEPT[kind]) == KEPT[kind]


MENDED = [
    (
        "old spelling",
        f"{OLD}\nРазсказъ безпечныхъ: прошлаго года ея слова.",
        f"{OLD_CLEAN}\nРассказ беспечных: прошлого года ее слова.",
    ),
    ("old words", f"{PROSE} То-есть куда жь, ужь что жь.", f"{PROSE} То есть куда ж, уж что ж."),
    (
        "cut words",
        "Он по-\nшел из-\nза угла по-\nрусски в Ростов-на-\nДону, кто-\nто.",
        "Он пошел из-за угла по-русски в Ростов-на-Дону, кто-то.",
    ),
    (
        "soft hyphens",
        "Пар¬\nоход в безоб\u00adраз\u00ad\nный порт\n\u00ad Куда?",
        "Пароход в безобразный порт\n— Куда?",
    ),
    (
        "notes",
        "Вера1 ушла. [98] И слово* (*1) <...> {7} прочь.\n[2] Речь о ней.\nВсе.",
        "Вера ушла. И слово прочь.\nВсе.",
    ),
    ("superscript", "Они жили в Твери\u00b9 и в Туле.\u00b2 Потом уехали.", "Они жили в Твери и в Туле. Потом уехали."),
    ("translation", "Он сказал «бонжур» (здравствуйте, франц.) и сел.", "Он сказал «бонжур» и сел."),
    ("author's brackets", "Он шел [так ему казалось] и [у]видел.", "Он шел (так ему казалось) и увидел."),
    ("chapter", f"{PROSE}\nГлава пятая\nНехорошая квартира\n{PROSE}\nКонец первой части", f"{PROSE}\n{PROSE}"),
    ("title", f"{PROSE}\n\nВ пути\n\n{PROSE}\n{PROSE}", f"{PROSE}\n{PROSE}\n{PROSE}"),
    ("chapter ten", "Он ушел.\nХ\nНа другой день\nПетр уехал.", "Он ушел.\nНа другой день\nПетр уехал."),
    ("rows of stars", "Он ушел.\n* * *\n-----\nУтро.", "Он ушел.\nУтро."),
    (
        "speakers above",
        "ГЕРЦОГ\n\nПодите!\n\nСЛУГА (тихо)\n\nИду.\n\nГЕРЦОГ\n\nСкорее!\n\nСЛУГА\n\nИду.",
        "ГЕРЦОГ\nПодите!\nСЛУГА (тихо)\nИду.\nГЕРЦОГ\nСкорее!\nСЛУГА\nИду.",
    ),
    (
        "numbered verse",
        "1\n\nСпят на крыше голуби\nДо зари\n\n2\n\nСкоро выйдет на крыльцо\nБабка Марья",
        "Спят на крыше голуби\nДо зари\nСкоро выйдет на крыльцо\nБабка Марья",
    ),
    ("foreign word", f"{PROSE} Он сказал: «How do you do», и все засмеялись. Подали чай.", f"{PROSE} Подали чай."),
    ("foreign sign", f"{PROSE} Он читал 漢字. Подали чай.", f"{PROSE} Подали чай."),
    (
        "dash of a reply",
        "— Eh bien, mon prince. Ну, здравствуйте, садитесь, рассказывайте.",
        "— Ну, здравствуйте, садитесь, рассказывайте.",
    ),
    ("lost pair", f"«Quelle pluie. {PROSE} Идем», — решил он.", f"{PROSE} Идем, — решил он."),
    ("between two halves", f"{PROSE[:-1]} и\nBonjour, prince!\nмолчал.", f"{PROSE[:-1]} и молчал."),
]


@pytest.mark.parametrize(("raw", "expected"), [pytest.param(*case[1:], id=case[0]) for case in MENDED])
def test_dirt_is_mended(nb, raw, expected):
    assert nb["clean_work"](raw) == expected
    assert nb["clean_work"](expected) == expected


@pytest.mark.parametrize(("length", "joined"), [(39, False), (40, True), (41, True)])
def test_only_long_lines_go_on_in_the_next(nb, length, joined):
    line = ("Он шел по дороге и думал о том, что было вчера вечером")[: length - 1] + "я"
    assert ("\n" not in nb["clean_work"](f"{line}\nдальше.")) == joined


@pytest.mark.parametrize(("lower", "wrapped"), [(3, False), (4, True)])
def test_over_a_third_of_lower_case_lines_mean_a_wrapped_file(nb, lower, wrapped):
    """Nine lines; in a wrapped file an upper-case line goes on too."""
    lines = ["Город стоял на высоком берегу реки, и дома его были видны издали"] * 9
    lines[1 : lower + 1] = ["город стоял на высоком берегу реки, и дома его были видны издали"] * lower
    assert nb["clean_work"]("\n".join(lines)).count("\n") == (0 if wrapped else 8 - lower)


def test_an_indent_begins_a_paragraph_of_a_wrapped_file(nb):
    raw = """   Запах вишневой коры  поднимается с пресной сыростью талого снега и ви-
шневых садов, с могучим и древним духом земли, который так
любил Николай.
   - Пора, - сказал он, глядя на реку и на дальний берег, где кто-
то жег костер."""
    first, second = nb["clean_work"](raw).split("\n")
    assert "и вишневых садов" in first and first.endswith("который так любил Николай.")
    assert second == "— Пора, — сказал он, глядя на реку и на дальний берег, где кто-то жег костер."


@pytest.mark.parametrize(("prose", "title_goes"), [(119, False), (120, True)])
def test_a_title_page_ends_before_the_first_long_line(nb, prose, title_goes):
    long = "а" * (prose - 1) + "."
    assert nb["clean_work"](f"Владимир Иванов\nТуман\n{long}\nКонец пути").startswith("Владимир") != title_goes


@pytest.mark.parametrize(("after", "goes"), [(1, True), (6, False)])
def test_notes_go_only_from_the_last_tenth(nb, after, goes):
    tail = "\n".join(["1 Речь о реке."] * after * 10)
    assert ("Речь" not in nb["clean_work"]("\n".join([PROSE] * 20) + f"\nПримечания\n{tail}")) == goes


@pytest.mark.parametrize(("letters", "stays"), [(19, False), (20, True)])
def test_a_rest_of_twenty_letters_stays(nb, letters, stays):
    rest = "А" + "б" * (letters - 1) + "."
    assert nb["drop_foreign"](f"Bonjour. {rest}") == (rest * stays, 1)


@pytest.mark.parametrize(
    ("text", "count"), [("ъ", 0), ("домъ", 1), (" " * 4_996 + "домъ", 0), (" " * 4_995 + "домъ", 1)]
)
def test_one_old_word_in_5000_characters_makes_an_old_work(nb, text, count):
    assert nb["modernise"](text)[1] == count


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Он ушел. Она осталась.", ["Он ушел.", " Она осталась."]),
        ("— Да! — сказал он. — Иду.\nТишина.", ["— Да! — сказал он.", " — Иду.\n", "Тишина."]),
        (
            "А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п.",
            ["А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п."],
        ),
        ("В 1812 г. Наполеон пришел.", ["В 1812 г.", " Наполеон пришел."]),
        ("Неужели?.. Да!.. Ох… Нет", ["Неужели?..", " Да!..", " Ох…", " Нет"]),
        ("Он спросил: «Кто там?» «Я», — ответила она.", ["Он спросил: «Кто там?»", " «Я», — ответила она."]),
        ("Ох... как же! и все?", ["Ох... как же! и все?"]),
        ("", []),
        ("\n\n  А. Б!»  — в?\t", ["\n\n", "  А. Б!»  — в?\t"]),
    ],
)
def test_split_sentences(nb, text, sentences):
    assert nb["split_sentences"](text) == sentences


@pytest.mark.parametrize("raw", ["", "\n \n", "Only Latin here. Nothing else.", "* * *", "漢字"])
def test_nothing_russian_gives_an_empty_text(nb, raw):
    assert nb["clean_work"](raw) == ""


def test_changes_and_losses_are_counted_by_theme(nb):
    row = nb["clean_and_count"](f"{PROSE}\nОна сказала bonjour. Он ждал,, N 5 и мистер R.!!!!! {{заметка}} {PROSE}")
    asked = [row["hits"][title] for title in ("чужие предложения", "повторы знаков", "латиница заменена")]
    assert asked == [1, 2, 2] and row["hits"]["сноски"] == 1
    assert {title: lost for title, lost in row["lost"].items() if lost} == {
        "латиница заменена": -1,
        "сноски": len("заметка"),
        "чужие предложения": len("Онасказала"),
    }


def run_section(notebook, nb, folder, texts: dict[str, str]):
    """Sections 0-2 on a folder of texts; what they left, as printed JSON."""
    (folder / "corpus").mkdir()
    for name, text in texts.items():
        (folder / "corpus" / f"{name}.txt").write_text(text, encoding="utf-8")
    left = "print('LEFT', json.dumps([clean, theme_hits, metrics['corpus'], poor]))"
    return run_forked(notebook, nb, {0, 1, 2}, folder / "out", then=left, CORPUS=folder / "corpus")


def test_the_section_reports_what_it_did(notebook, nb, tmp_path):
    """The run's texts and figures against works cleaned one by one here; equal works count once, «Б» loses too much."""
    much = f"{PROSE}\n" + "Она сказала bonjour. " * 20
    texts = {"А": PROSE * 3 + " Bonjour, prince.", "Б": much, "В": "English only."}
    run = run_section(notebook, nb, tmp_path, texts | {"Г": texts["А"]})
    assert run.returncode == 0, run.stdout
    clean, hits, figures, poor = json.loads(run.stdout.split("LEFT ")[1])
    rows = {name: nb["clean_and_count"](text) for name, text in texts.items()}
    assert clean == {name: rows[name]["text"] for name in "АБ"} | {"Г": rows["А"]["text"]}
    assert hits == {title: sum(rows[name]["hits"][title] for name in "АБВА") for title in hits}
    raw = sum(len(re.findall("[А-Яа-яЁё]", text)) for text in texts.values())
    left = sum(len(re.findall("[А-Яа-яЁё]", row["text"])) for row in rows.values())
    assert figures["letters_kept"] == pytest.approx(left / raw)
    assert figures["chars_clean"] == sum(map(len, clean.values()))
    assert [(name, cause) for name, _, cause in poor] == [("Б", "чужие предложения")]


def test_another_language_is_refused(notebook, nb, tmp_path):
    run = run_section(notebook, nb, tmp_path, {"a": "Once upon a time there was a river. " * 50})
    assert run.returncode and re.search("ValueError: CORPUS=.*русск", run.stdout)


def test_sample_works_come_out_clean(nb):
    paths = [path for path in nb["Path"]("data/sample/corpus").iterdir()]
    for raw in (path.read_text(encoding="utf-8") for path in paths):
        text = nb["clean_work"](raw)
        assert nb["clean_work"](text) == text
        assert not re.search(r"[^А-Яа-я0-9 \n.,!?…:;—«»()'№%°/*-]|\n\n|  | \n", text)
        assert nb["count_letters"](text) > 0.9 * len(re.findall("[А-Яа-яЁё]", raw))
