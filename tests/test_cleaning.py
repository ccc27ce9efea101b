"""Section 2: kinds of dirt and what must survive, through `clean_work`; boundaries of its rules; its counts."""

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

TYPED = [  # what is typed, what it means
    ('Ещё вчера он сказал: "Пора" --\u00a0и вышел', "Еще вчера он сказал: «Пора» — и вышел"),
    ("Кто\u2010то из\u2011за печки по\u2012русски и по–старому", "Кто-то из-за печки по-русски и по-старому"),
    ("Он сел \u2015 и \u2212 умолк – навек - вот", "Он сел — и — умолк — навек — вот"),
    ("„Да“, “нет”, ‹может›, 'быть' ''так'', <<вот>>", "«Да», «нет», «может», «быть» «так», «вот»"),
    ("Он\u2009вошел\u200b\ufeff,\u3000сел\tи\u202fждал", "Он вошел, сел и ждал"),
    ("Всë, всѐ, чєловек, мoре, дοм, їх, моја", "Все, все, человек, море, дом, их, мойа"),
    ("Мои\u0306 зеленыи\u0306 е\u0308жик и за\u0301мок, за´мок", "Мой зеленый ежик и замок, замок"),
    ("<p>Он <b>сам</b></p><p>&laquo;Да&raquo;&amp;nbsp;&mdash; нет</p>", "\nОн сам\n\n«Да» — нет"),
    ("Она _никогда_, **никуда** не *шла*, ~~она~~ [b]нет[/b]", "Она никогда, никуда не шла, она нет"),
    ("Г* и N*** из ***ской губернии в ** году", "Г*** и Н*** из ***ской губернии в *** году"),
    ("Он ждал... долго….. . .", "Он ждал… долго…"),
    ("Да,, нет!!!! Как???? Куда!?!? Что!!!", "Да, нет!!! Как??? Куда?! Что!!!"),
    ("Неужели?... Да!… Ну?!", "Неужели?.. Да!.. Ну?!"),
    ("Он вошел , сел ( так ) .Она :нет, город .правда", "Он вошел, сел (так). Она: нет, город. правда"),
    ("Он хотел ему —. Но пламя погасло", "Он хотел ему… Но пламя погасло"),
    ("½ фунта, дом № 5, N_13 и No 7", "1/2 фунта, дом № 5, № 13 и № 7"),
    ("Пг’авда, чог'т, то-есть", "Пг'авда, чог'т, то есть"),
    ("Король XLII и XC, XIV-XX века, в XХ году", "Король 42 и 90, 14-20 века, в 20 году"),
    ("Николай I и глава V, в главе X", "Николай 1 и глава 5, в главе Х"),
    ("мистер R. и княгиня X. молчали", "мистер Р. и княгиня Х. молчали"),
    ("Bce ждали, a он молчал. He плачь, HET, B доме", "Все ждали, а он молчал. Не плачь, НЕТ, В доме"),
    ("m-me Денисова, m-mе Х. и Mademoiselle", "мадам Денисова, мадам Х. и Мадемуазель"),
    ("Mon cher Nicolas, где maman?", "Мон шер Николя, где маман?"),
    ("N-ский полк в городе NN", "Н-ский полк в городе НН"),
    ("la maman R. chez nous, cobra и cor", "la maman R. chez nous, cobra и cor"),
]


@pytest.mark.parametrize(("typed", "expected"), TYPED)
def test_signs_and_latin_that_can_be_russian_are_folded(nb, typed, expected):
    assert nb["fold"](typed) == expected
    assert nb["fold"](expected) == expected


KEPT = {
    "replies": "— Да! — сказал он. — Иду.\n— …\n— Да.\n— Да.",
    "hyphens": "Кто-то из-за угла; по-русски, Ростов-на-Дону. Двух- и трехэтажные дома. 1812—1832.",
    "verse without marks": "Под окном цветет сирень\nВозле старого колодца\nПо траве уходит день",
    "long verse": "Когда над нашим старым садом медленно встает рассвет,\nИ первый луч ложится на холодные перила.",
    "play in line": "КОРОЛЬ. Кто там?\nШУТ (кланяясь). Это я.\nКОРОЛЬ. Входи.",
    "words like old ones": "Благо, что он молчал; живая статуя, здания, ее и нее, съезд, шага нет, рожь.",
    "brackets with a pronoun": "Он молчал (что в нем было странного, она не думала о нем.) и ждал.",
    "numbered rules": "1. Безусловно воспрещается покидать здание тюрьмы.\n2. Кротость узника есть украшение.",
    "sign": "На двери было написано:\nБЮРО ПРЕТЕНЗИЙ\nОн постучал.",
    "parts": "Часть солдат ушла.\nКнига лежала на столе.\nКонец был близок.",
}
MENDED = {
    "old spelling": (
        f"{OLD}\nРазсказъ безпечныхъ: прошлаго года ея слова. Куда жь, ужь.",
        f"{OLD_CLEAN}\nРассказ беспечных: прошлого года ее слова. Куда ж, уж.",
    ),
    "cut words": (
        "Он по-\nшел из-\nза угла по-\nрусски в Ростов-на-\nДону, кто-\nто. А место, мес-\nто; юг-запад, юг-\nзапад.",
        "Он пошел из-за угла по-русски в Ростов-на-Дону, кто-то. А место, место; юг-запад, юг-запад.",
    ),
    "soft hyphens": (
        "Пар¬\nоход в безоб\u00adраз\u00ad\nный порт\n\u00ad Куда?",
        "Пароход в безобразный порт\n— Куда?",
    ),
    "notes": ("Вера1 ушла. [98] И слово (*1) {7} прочь.\n[2] Речь о ней.\nВсе.", "Вера ушла. И слово прочь.\nВсе."),
    "superscript": ("Они жили в Твери\u00b9 и в Туле.\u00b2 Потом уехали.", "Они жили в Твери и в Туле. Потом уехали."),
    "translation": ("Он сказал «бонжур» (здравствуйте, франц.) и сел.", "Он сказал «бонжур» и сел."),
    "author's brackets": ("Он шел [так ему казалось] и [у]видел.", "Он шел (так ему казалось) и увидел."),
    "chapter": (f"{PROSE}\nГлава пятая\nНехорошая квартира\n{PROSE}\nКонец первой части", f"{PROSE}\n{PROSE}"),
    "title page": ("Владимир Иванов\n\nТуман\n\nГете сказал.\n" + PROSE, "Гете сказал.\n" + PROSE),
    "title": (f"{PROSE}\n\nВ пути\n\n{PROSE}\n{PROSE}", f"{PROSE}\n{PROSE}\n{PROSE}"),
    "chapter ten": ("Он ушел.\nХ\nНа другой день\nПетр уехал.", "Он ушел.\nНа другой день\nПетр уехал."),
    "numbers, stars": ("Он ушел.\n* * *\nXIV\n-----\n1. УТРО. ЛЕС.\nУтро.", "Он ушел.\nУтро."),
    "speakers above": (
        f"{PROSE}\n\nГЕРЦОГ\n\nПодите!\n\nСЛУГА (тихо)\n\nИду.\n\nГЕРЦОГ\n\n{PROSE}",
        f"{PROSE}\nГЕРЦОГ\nПодите!\nСЛУГА (тихо)\nИду.\nГЕРЦОГ\n{PROSE}",
    ),
    "numbered verse": (
        "1\n\nСпят на крыше голуби\nДо зари\n\n2\n\nСкоро выйдет на крыльцо\nБабка Марья",
        "Спят на крыше голуби\nДо зари\nСкоро выйдет на крыльцо\nБабка Марья",
    ),
    "foreign word": (f"{PROSE} Он сказал: «How do you do», и ушел. Подали чай.", f"{PROSE} Подали чай."),
    "foreign sign": (f"{PROSE} Он читал 漢字. Подали чай.", f"{PROSE} Подали чай."),
    "dash of a reply": ("— Eh bien, mon prince. Ну, садитесь, рассказывайте.", "— Ну, садитесь, рассказывайте."),
    "lost pair": (f"«Quelle pluie. {PROSE} «Да» Идем», — решил он.", f"{PROSE} «Да» Идем, — решил он."),
    "between two halves": (f"{PROSE[:-1]} и\nBonjour, prince!\nмолчал.", f"{PROSE[:-1]} и молчал."),
    "indents of a wrapped file": (
        "   Город стоял на высоком берегу реки, и дома\nего были видны издали, когда приезжал сюда\n"
        "Николай с отцом, который  любил эту до-\nрогу\nи всегда молчал.\n   Он умер.",
        "Город стоял на высоком берегу реки, и дома его были видны издали, когда приезжал сюда "
        "Николай с отцом, который любил эту дорогу и всегда молчал.\nОн умер.",
    ),
}
BOUNDARIES = {
    "a line of 39 letters": ("А" + "б" * 38 + "\nдальше.", "А" + "б" * 38 + "\nдальше."),
    "a line of 40 letters": ("А" + "б" * 39 + "\nдальше.", "А" + "б" * 39 + " дальше."),
    "no prose after a title": ("Туман\n" + "а" * 118 + ".", "Туман\n" + "а" * 118 + "."),
    "prose after a title": ("Туман\n" + "а" * 119 + ".", "а" * 119 + "."),
    "a rest of 19 letters": ("Bonjour. А" + "б" * 18 + ".", ""),
    "a rest of 20 letters": ("Bonjour. А" + "б" * 19 + ".", "А" + "б" * 19 + "."),
    "notes in the last tenth": (f"{PROSE}\n" * 20 + "Примечания\n1 Речь.", f"{PROSE}\n" * 19 + PROSE),
    "notes before it": (f"{PROSE}\nПримечания\nРечь.", f"{PROSE}\nПримечания\nРечь."),
}
NOTHING = {repr(text): (text, "") for text in ("\n \n", "Only Latin here. Nothing else.", "* * *", "漢字")}
CASES = MENDED | BOUNDARIES | NOTHING | {kind: (text, text) for kind, text in KEPT.items()}


@pytest.mark.parametrize("kind", CASES)
def test_dirt_is_mended_and_good_text_is_kept(nb, kind):
    raw, expected = CASES[kind]
    assert nb["clean_work"](raw) == expected
    assert nb["clean_work"](expected) == expected


@pytest.mark.parametrize(("lower", "wrapped"), [(3, False), (4, True)])
def test_over_a_third_of_lower_case_lines_mean_a_wrapped_file(nb, lower, wrapped):
    """Nine lines; in a wrapped file an upper-case line goes on too."""
    lines = ["Город стоял на высоком берегу реки, и дома его были видны издали"] * 9
    lines[1 : lower + 1] = ["город стоял на высоком берегу реки, и дома его были видны издали"] * lower
    assert nb["clean_work"]("\n".join(lines)).count("\n") == (0 if wrapped else 8 - lower)


@pytest.mark.parametrize(("spaces", "old"), [(4_996, False), (4_995, True)])
def test_one_old_word_in_5000_characters_makes_an_old_work(nb, spaces, old):
    assert nb["modernise"](" " * spaces + "домъ")[1] == old


SENTENCES = [
    ["Он ушел.", " Она осталась."],
    ["— Да! — сказал он.", " — Иду.\n", "Тишина."],
    ["А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п."],
    ["В 1812 г.", " Наполеон пришел.", " 5 лет прошло."],
    ["Неужели?..", " Да!..", " Ох…", " Нет"],
    ["Он спросил: «Кто там?»", " «Я», — ответила она."],
    ["Ох... как же! и все?"],
    ["\n\n", "  А. Б!»  — в?\t"],
]


@pytest.mark.parametrize("sentences", SENTENCES)
def test_split_sentences(nb, sentences):
    assert nb["split_sentences"]("".join(sentences)) == sentences


def test_the_section_reports_what_it_did(notebook, nb, tmp_path):
    """The run's texts and figures against works cleaned one by one here; «Б» loses too much, «В» all."""
    texts = {"А": PROSE * 3 + " Он сказал «да» (нет, франц.). Bonjour, prince, N 5.", "Б": PROSE + "\nОна,, bonjour." * 20, "В": "Old."}
    (tmp_path / "corpus").mkdir()
    for name, text in texts.items():
        (tmp_path / "corpus" / f"{name}.txt").write_text(text, encoding="utf-8")
    left = "clean, theme_hits, metrics['corpus'], [*poor.index], [*poor['главная причина']]"
    then = f"print('LEFT', json.dumps([{left}]))"
    run = run_forked(notebook, nb, {0, 1, 2}, tmp_path / "out", then=then, CORPUS=tmp_path / "corpus")
    assert run.returncode == 0, run.stdout
    clean, hits, figures, poor, causes = json.loads(run.stdout.split("LEFT ")[1])
    rows = {name: nb["clean_and_count"](text) for name, text in texts.items()}
    assert clean == {name: rows[name]["text"] for name in "АБ"}
    assert hits == {title: sum(row["hits"][title] for row in rows.values()) for title in hits}
    assert [hits[title] for title in ("чужие предложения", "повторы знаков", "латиница заменена")] == [22, 20, 1]
    raw, left = (sum(len(re.findall("[А-Яа-яЁё]", text)) for text in group.values()) for group in (texts, clean))
    assert figures["letters_kept"] == pytest.approx(left / raw)
    assert figures["chars_clean"] == sum(map(len, clean.values()))
    assert (poor, causes) == (["Б"], ["чужие предложения"])
    assert f"Осталось {left / raw:.2%} русских букв; больше всего удалили темы «чужие предложения»" in run.stdout


def test_another_language_is_refused(notebook, nb, tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Once upon a time there was a river. " * 50, encoding="utf-8")
    run = run_forked(notebook, nb, {0, 1, 2}, tmp_path / "out", CORPUS=tmp_path / "corpus")
    assert run.returncode and re.search("ValueError: CORPUS=.*русск", run.stdout)


def test_sample_works_come_out_clean(nb):
    for raw in (path.read_text(encoding="utf-8") for path in nb["Path"]("data/sample/corpus").iterdir()):
        text = nb["clean_work"](raw)
        assert nb["clean_work"](text) == text
        assert not re.search(r"[^А-Яа-я0-9 \n.,!?…:;—«»()'№%°/*-]|\n\n|  | \n", text)
        assert nb["count_letters"](text) > 0.9 * len(re.findall("[А-Яа-яЁё]", raw))
