"""Sections 2 and 3: one test for each rule on the dirt it was written for, and one for each thing that must survive."""

import pytest

REAL_NAMES = """
Bulgakov_BelayaGvardiya Bulgakov_Diavoliada Bulgakov_Master Bulgakov_RokovyeYaytsa Bulgakov_TeatralnyjRoman
Bulgakov_ZapiskiYonogoVracha Chekhov_Dama Chekhov_Dyadya Dostoyevski_Biesy Dostoyevski_Idiot Dostoyevsky_BednyeLyudi
Dostoyevsky_Karamazow1 Dostoyevsky_Karamazow2 Dostoyevsky_Karamazow3 Dostoyevsky_Karamazow4
Dostoyevsky_PrestupleniyeINakazaniye Durova_GodZyznijWPeterburge Durova_Gudishki Durova_IgraSudby Durova_Pavilion
Durova_SernyjKljuch Durova_Ugol Durova_Yurchak Gan_Ideal Gan_SudSveta Gippius_ChertovayaKukla Gippius_Roman-Tzarevich
Gogol_Mertvye Gogol_StarosvyetskiyePomeshchiki Gogol_Taras Gogol_Viy Gorky_ArtamonovBusiness Gorky_FomaGordeev Gorky_Mat
Gorky_ZyznKlimaSamgina1 Gorky_ZyznKlimaSamgina2 Gorky_ZyznKlimaSamgina3 Gorky_ZyznKlimaSamgina4 Krjukov_NaTichomDonu
Krjukov_Shkval Krjukov_Zyb NKhvoshchinskaya_Bratets NKhvoshchinskaya_Pansionerka NKhvoshchinskaya_PervayaBorba
NKhvoshchinskaya_PoslijePotopa NKhvoshchinskaya_Proshaniye Nabokov_Ada_1969_Ilin Nabokov_Arlekinov_1974_Ilin Nabokov_Dar_1938
Nabokov_Kamera_1933 Nabokov_Kazn_1936 Nabokov_Korol_1928 Nabokov_Lolita_1955_Nabokov Nabokov_Mashenka_1926
Nabokov_Nait_1941_Ilin Nabokov_Otchayanie_1934 Nabokov_Pnin_1957_Barabtarlo Nabokov_Pnin_1957_Ilin Nabokov_Pnin_1957_Nosik
Nabokov_Podvig_1932 Nabokov_Veschi_1972_Ilin Nabokov_Zashchita_1930 Nabokov_Znakom_1947_Ilin Panaeva_Domashny Panaeva_Paseka
Panaeva_Steppe Panaeva_Talnikov Pushkin_ArapPetraVelikogo Pushkin_CapitanskaaDochka Pushkin_Dubrovsky Pushkin_Pikovaya
Pushkin_PovestiPokoynogoIvanaPetrovichaBelkina SKhvoshchinskaya_GorodskieIDerevenskie Sholokhov_PodnyatayaTselina
Sholokhov_TikhiiDon Sologub_KapliKrovi Sologub_KorolevaOrtruda Sologub_MelkijBes Sologub_TjazolyjeSny Tolstoi_AnnaKarenina
Tolstoi_SemeynoyeSchastiye Tolstoi_Voskreseniye Tolstoi_VoynaIMir1 Tolstoi_VoynaIMir2 Tolstoi_VoynaIMir3 Tolstoi_VoynaIMir4
Tolstoi_VoynaIMir_ver1 Tur_ShalonskiFamily Tur_Starushka Turgenev_DvoryanskoyeGnezdo Turgenev_Dym Turgenev_Nakanune
Turgenev_Nov Turgenev_OttsyIDeti Turgenev_Rudin Turgenev_VeshniyeVody Volkonskaya_Olga2-6 Vovchok_Chelovek
Vovchok_ChervonnyjKorol Vovchok_PuteshestvieVoVnutrStrany Vovchok_Toy Vovchok_TulevayaBaba Vovchok_ZapiskiPrichyotnika
Vovchok_Zateinik Zhukova_BaronReichman Zhukova_Dacha Zinovieva-Annibal_TridtsatTriUgoda
""".split() + ["Vovchok_Zapiski prichyotnika"]

PROSE = "Утро было тихое, и над рекой стоял туман; лодки у берега еще спали, и только сторож ходил по мосткам, стуча сапогами да покашливая."

RULES = [
    ("line breaks", "Он вошел.\r\nОна молчала.", "Он вошел.\nОна молчала."),
    ("html entity", "А т&#1077; письма целы.", "А те письма целы."),
    ("soft hyphen as a dash", "   \u00AD Зачем? – спросил он.", "— Зачем? — спросил он."),
    ("soft hyphen in a word", "Он вошел в безоб\u00ADразный зал.", "Он вошел в безобразный зал."),
    ("control character", "Тем \x07паче он молчал.", "Тем паче он молчал."),
    ("no-break space", "Он\u00A0вошел.", "Он вошел."),
    ("bullet as a dash", "• Университет, - сказал он.", "— Университет, — сказал он."),
    ("box drawing for letters", "Как╕е странные наряды!", "Какие странные наряды!"),
    ("half", "Росту в нем 2 аршина 1╫ вершка.", "Росту в нем 2 аршина 1 с половиной вершка."),
    ("backslash for о", "Он не знал, чт\\ вы здесь.", "Он не знал, что вы здесь."),
    ("angle for а", "Пап<, мы опоздаем!", "Папа, мы опоздаем!"),
    ("hash for a hyphen", "Что#то случилось, да#с.", "Что-то случилось, да-с."),
    ("Roman numerals", "В конце XVIII века жил Людовик XVI.", "В конце 18 века жил Людовик 16."),
    ("N for a number", "В доме N_13 и в квартире N 50 темно.", "В доме № 13 и в квартире № 50 темно."),
    ("N for a name", "Он приехал в город NN. Стояла осень.", "Он приехал в город НН. Стояла осень."),
    ("Latin doubles in a word", "Я посмотрeл на нeго.", "Я посмотрел на него."),
    ("Latin double as a word", "Я ждал, a он молчал.", "Я ждал, а он молчал."),
    ("ё", "Её звали Алёна.", "Ее звали Алена."),
    ("digits for letters", "Он 6удет здесь, не в те6е дело.", "Он будет здесь, не в тебе дело."),
    ("old letters", "Ѳедоръ встрѣтилъ меня въ лѣсу.", "Федор встретил меня в лесу."),
    ("old pronouns", "Онѣ молчали, и однѣ ушли.", "Они молчали, и одни ушли."),
    ("old endings", "Прошлаго года новыя струи и послѣднія надежды больнаго.", "Прошлого года новые струи и последние надежды больного."),
    ("old prefixes", "Разсказъ про безпечныя дни.", "Рассказ про беспечные дни."),
    ("justified line", "Он  вошел   и  сел.", "Он вошел и сел."),
    ("underscored emphasis", "Стояло: М_а_ш_а.", "Стояло: Маша."),
    ("spaced emphasis", "Он с а м привел приговор.", "Он сам привел приговор."),
    ("note in braces", "Она улыбнулась {75} и ушла {в духе времени (франц.).}.", "Она улыбнулась и ушла."),
    ("note mark", "Он улыбнулся. [98] И ушел.", "Он улыбнулся. И ушел."),
    ("note block", "Он улыбнулся.\n   [(сноска 57)] Дело в том, что я терплю.\nИ ушел.", "Он улыбнулся.\nИ ушел."),
    ("translation block", "Он улыбнулся.\n  12 маленький боярин (франц.)\nИ ушел.", "Он улыбнулся.\nИ ушел."),
    ("glued note digit", "Вера1 пришла. Он сказал «нет»2 и ушел.", "Вера пришла. Он сказал «нет» и ушел."),
    ("editor's note", "Ходил [перед праздником -- Ред.] в церковь.", "Ходил в церковь."),
    ("editor's word", "В то же время [это] укрепляло его.", "В то же время это укрепляло его."),
    ("gap mark", "Он молчал. <...> Она ушла.", "Он молчал. Она ушла."),
    ("stray characters", "Мутные глаза его^ посветлели.", "Мутные глаза его посветлели."),
    ("double hyphen", "Он -- друг.", "Он — друг."),
    ("hyphen for a dash", "- Живите, - сказал он.", "— Живите, — сказал он."),
    ("en dash in a range", "В 1861–1862 годах.", "В 1861—1862 годах."),
    ("glued dash", "Он сел,-- устал.", "Он сел, — устал."),
    ("straight quotes", 'Он сказал: "Да". "Нет!" -- ответила она.', "Он сказал: «Да». «Нет!» — ответила она."),
    ("German quotes", "Его „водит“ нужда.", "Его «водит» нужда."),
    ("single quotes", "'Встала, матушка!' - отвечал голос.", "«Встала, матушка!» — отвечал голос."),
    ("ellipsis", "Он ждал... долго.....", "Он ждал… долго…"),
    ("ellipsis after a mark", "Неужели?... Да!...", "Неужели?.. Да!.."),
    ("repeated marks", "Да,, нет!!!!! Как????", "Да, нет!!! Как???"),
    ("broken ellipsis", "Взять с собою?., ее!., Прости!. Вот.", "Взять с собою?.. ее!.. Прости!.. Вот."),
    ("?! order", "Что!? Как!!?", "Что?! Как?!"),
    ("stars in a name", "Госпожа Г* и село ** рядом.", "Госпожа Г*** и село *** рядом."),
    ("missing space", "Он вошел,сел.Она молчала.", "Он вошел, сел. Она молчала."),
    ("space before a mark", "Он вошел , сел !", "Он вошел, сел!"),
    ("elided name", "Он шел по С -- му мосту в К -- ну.", "Он шел по С — му мосту в К—ну."),
    ("separator", "Он ушел.\n* * *\n-----\nУтро настало.", "Он ушел.\nУтро настало."),
    ("chapter heads", "Глава первая\nI\nУтро настало.\n12.\nКонец первой части", "Утро настало."),
    ("chapter title in capitals", "VIII. БРЕД НОЧИ.\nУтро настало.", "Утро настало."),
]


@pytest.mark.parametrize(("raw", "expected"), [pytest.param(raw, expected, id=name) for name, raw, expected in RULES])
def test_rule(nb, raw, expected):
    assert nb["clean_work"](raw) == expected


SURVIVORS = [
    "— Да! — сказал он. — Иду.",
    "Он спросил: «Ты?!» — и замолчал.",
    "Кто-то из-за угла; по-русски, Ростов-на-Дону.",
    "В 1812 году было 100000 человек, в 3 часа 15 минут.",
    "Салтыков-Щедрин и Мамин-Сибиряк.",
    "Приехал г. Иванов, т. е. тот самый, и т. д.",
    "— Пг'авда, чог'т возьми! — кричал Денисов.",
    "Неужели?.. Да!.. Нет…",
    "Двух- и трехэтажные дома.",
    "Что ж, и я к вам.",
    "Отъезд, объявление, подъезд.",
    "— …\n— Да.\n— Да.",
    "Я помню чудное мгновенье:\nПередо мной явилась ты,\nКак мимолетное виденье,\nКак гений чистой красоты.",
    "Благо, что он молчал; живая статуя.",
]


@pytest.mark.parametrize("text", SURVIVORS)
def test_survives(nb, text):
    assert nb["clean_work"](text) == text


def test_hard_wrapped_paragraphs_are_rebuilt(nb):
    raw = (
        "   В конце января, овеянные первой оттепелью,  хорошо пахнут  вишневые\n"
        "сады. В полдень где-нибудь в затишке грустный, чуть внятный запах ви-\n"
        "шневой коры поднимается с пресной сыростью талого снега, с могучим и\n"
        "древним духом земли.\n"
        "   - Пора бы, - сказал он, глядя на реку и на дальний берег, где кто-\n"
        "то жег костер.\n"
    )
    assert nb["clean_work"](raw) == (
        "В конце января, овеянные первой оттепелью, хорошо пахнут вишневые сады. В полдень где-нибудь в затишке грустный, "
        "чуть внятный запах вишневой коры поднимается с пресной сыростью талого снега, с могучим и древним духом земли.\n"
        "— Пора бы, — сказал он, глядя на реку и на дальний берег, где кто-то жег костер."
    )


def test_title_page_and_tail_are_dropped(nb):
    raw = f"Владимир Иванов\nТуман\nПеревод с английского П. Петрова\n\n{PROSE}\n\nБерлин, 1926 г.\n\nПримечания\n1 Туман (англ.).\n"
    assert nb["clean_work"](raw) == PROSE


def test_sentence_with_foreign_letters_goes_whole(nb):
    raw = "— Eh bien, mon prince. Ну, здравствуйте, здравствуйте. Садитесь и рассказывайте, что нового в городе."
    assert nb["clean_work"](raw) == "— Ну, здравствуйте, здравствуйте. Садитесь и рассказывайте, что нового в городе."


def test_paragraph_of_mostly_foreign_text_goes(nb):
    assert nb["clean_work"](f"— Charmant, charmant, c'est bien vous! Да.\n{PROSE}") == PROSE


def test_quote_that_lost_its_pair_is_dropped(nb):
    raw = "Он долго смотрел в окно на улицу и думал. «Quelle pluie. Надо идти, но как же не хочется», — решил он и встал."
    assert nb["clean_work"](raw) == "Он долго смотрел в окно на улицу и думал. Надо идти, но как же не хочется, — решил он и встал."


@pytest.mark.parametrize("raw", [raw for _, raw, _ in RULES] + SURVIVORS)
def test_idempotent(nb, raw):
    once = nb["clean_work"](raw)
    assert nb["clean_work"](once) == once


@pytest.mark.parametrize("raw", ["", "\n \n", "Only Latin here. Nothing else.", "* * *"])
def test_nothing_russian_gives_an_empty_text(nb, raw):
    assert nb["clean_work"](raw) == ""


def test_empty_works_are_left_out(nb):
    clean, table = nb["clean_works"]({"A_Russian": PROSE, "B_Latin": "Only Latin here."})
    assert clean == {"A_Russian": PROSE}
    assert table["случаев"].gt(0).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp1251", "koi8-r"])
def test_decoding(nb, encoding):
    assert nb["decode_work"]("A_Work", PROSE.encode(encoding)) == PROSE


def test_unreadable_file_is_named(nb):
    with pytest.raises(ValueError, match="A_Work"):
        nb["decode_work"]("A_Work", PROSE.encode("utf-16"))


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Он ушел. Она осталась.", ["Он ушел.", " Она осталась."]),
        ("— Да! — сказал он. — Иду.\nТишина.", ["— Да! — сказал он.", " — Иду.\n", "Тишина."]),
        ("А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п.", ["А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п."]),
        ("Приехал г. N. Дождь.", ["Приехал г. N. Дождь."]),
        ("В 1812 г. Наполеон пришел.", ["В 1812 г.", " Наполеон пришел."]),
        ("Неужели?.. Да!.. Ох… Нет.", ["Неужели?..", " Да!..", " Ох…", " Нет."]),
        ("Он спросил: «Кто там?» «Я», — ответила она.", ["Он спросил: «Кто там?»", " «Я», — ответила она."]),
        ("Ох... как же! и все?", ["Ох... как же! и все?"]),
    ],
)
def test_split_sentences(nb, text, sentences):
    assert nb["split_sentences"](text) == sentences


@pytest.mark.parametrize("text", ["", "\n\n", "  a. B \r\n\r\n«В!»  — c?\t", PROSE, "А. " * 2000, "... " * 2000, "«" * 500 + "Б. А" + "»" * 500])
def test_split_sentences_is_lossless(nb, text):
    assert "".join(nb["split_sentences"](text)) == text


def test_groups_of_the_real_corpus(nb):
    groups = nb["group_works"](REAL_NAMES)
    assert len(REAL_NAMES) == len(groups) == 108
    together = {}
    for name, group in groups.items():
        together.setdefault(group, set()).add(name)
    assert sorted(len(names) for names in together.values() if len(names) > 1) == [2, 3, 4, 4, 5]
    assert {f"Tolstoi_VoynaIMir{i}" for i in (1, 2, 3, 4, "_ver1")} in together.values()
    assert {"Vovchok_ZapiskiPrichyotnika", "Vovchok_Zapiski prichyotnika"} in together.values()


def test_groups_of_unseen_names(nb):
    groups = nb["group_works"](["Lesnov_Usadba1", "Lesnov_Usadba2", "X_Title", "X_Title_ver1", "X_Title_1957_Translator", "X_Titles", "Vovchok_Zapiski", "Vovchok_ZapiskiPrichyotnika"])
    assert groups["Lesnov_Usadba1"] == groups["Lesnov_Usadba2"]
    assert groups["X_Title"] == groups["X_Title_ver1"] == groups["X_Title_1957_Translator"] != groups["X_Titles"]
    assert groups["Vovchok_Zapiski"] == groups["Vovchok_ZapiskiPrichyotnika"]


def test_fixed_split(nb):
    split, groups = nb["split_works"](REAL_NAMES), nb["group_works"](REAL_NAMES)
    assert {name for name, part in split.items() if part == "test"} == {"Bulgakov_BelayaGvardiya", "Durova_IgraSudby", "Gogol_Mertvye", "Nabokov_Veschi_1972_Ilin"}
    assert sum(part == "validation" for part in split.values()) == 7
    assert split["Tolstoi_VoynaIMir1"] == "train"
    assert all(split[a] == split[b] for a in groups for b in groups if groups[a] == groups[b])


def test_split_of_another_corpus(nb):
    names = [f"Author_Title{letter}{volume}" for letter in "ABCDEFGHIJKL" for volume in (1, 2)]
    split = nb["split_works"](names)
    assert split == nb["split_works"](reversed(names))
    assert {"train", "validation", "test"} == set(split.values())
    assert all(split[f"Author_Title{letter}1"] == split[f"Author_Title{letter}2"] for letter in "ABCDEFGHIJKL")


def test_too_few_groups(nb):
    with pytest.raises(ValueError, match="три"):
        nb["split_works"](["A_B1", "A_B2", "C_D"])


def make_scene(seed: int, count: int = 12) -> str:
    words = [f"слово{chr(1072 + (seed * 7 + i) % 32)}{chr(1072 + (seed + i * i) % 32)}" for i in range(count)]
    return " ".join(words) + f" конец{chr(1072 + seed)}."


def test_repeats_leave_the_later_work(nb):
    scene = [make_scene(1, 20), "— Да.", make_scene(2, 20)]
    own = [make_scene(3, 20), "— Да."]
    texts, table = nb["drop_repeated_passages"]({"First": "\n".join(scene), "Second": "\n".join(own + scene)})
    assert texts == {"First": "\n".join(scene), "Second": "\n".join(own)}
    assert table.to_dict("records") == [{"убрано из": "Second", "осталось в": "First", "абзацев": 3, "знаков": sum(map(len, scene))}]


def test_near_repeat_is_found(nb):
    first = make_scene(1, 40)
    texts, _ = nb["drop_repeated_passages"]({"First": first, "Second": first.replace("конец", "финал") + "\n" + make_scene(5, 20)})
    assert texts["Second"] == make_scene(5, 20)


def test_short_sentences_are_no_duplicates(nb):
    texts = {"First": "— Да.\n— Нет.\n" + make_scene(1, 20), "Second": "— Да.\n— Нет.\n" + make_scene(2, 20)}
    assert nb["drop_repeated_passages"](texts)[0] == texts


def test_equal_works_are_dropped(nb):
    texts, table = nb["drop_repeated_passages"]({"First": "— Да.\n— Нет.", "Second": "— Да.\n— Нет.", "Third": "Ночь."})
    assert list(texts) == ["First", "Third"] and table["знаков"].sum() == 11


def test_leak_is_loud(nb):
    with pytest.raises(ValueError, match="Утечка"):
        nb["measure_leak"]({"A": make_scene(1, 40)}, {"B": make_scene(1, 40)})


def test_no_leak(nb):
    assert nb["measure_leak"]({"A": make_scene(1, 40)}, {"B": make_scene(2, 40)})["есть в обучающей"].sum() == 0


@pytest.mark.parametrize("work", ["Pushkin_Pikovaya", "Vovchok_Zateinik", "Chekhov_Dyadya", "NKhvoshchinskaya_PoslijePotopa"])
def test_real_works_come_out_clean_and_almost_whole(nb, real_corpus, tmp_path, work):
    raw = nb["load_corpus"](str(real_corpus), tmp_path)[0][work]
    clean = nb["clean_work"](raw)
    assert nb["clean_work"](clean) == clean
    assert not nb["re"].search(r"[^А-Яа-я0-9 \n.,!?…:;—«»()'№%°*/-]|\n\n|  ", clean)
    assert nb["count_russian"]([clean]) > 0.9 * nb["count_russian"]([raw])


APPLIED_ALONE = [
    ("переводы строк", "Да.\r\nНет.\rХорошо.", "Да.\nНет.\nХорошо."),
    ("невидимые знаки", "тяну\u00ADлись\u200B возы\x01", "тянулись возы"),
    ("пробелы выключки", "Он  вошел   и сел.", "Он вошел и сел."),
    ("сноска в конце абзаца", "Он ушел. (*3) Здесь: навсегда.", "Он ушел."),
    ("метки сносок", "слово* и [98] еще (*1) раз", "слово и  еще  раз"),
    ("помета языка в скобках", "Он сказал bonjour (здравствуйте, франц.) и сел.", "Он сказал bonjour и сел."),
    ("перевод после чужого слова", "Он сказал bonjour [здравствуй] и сел.", "Он сказал bonjour и сел."),
    ("слова, вставленные редактором", "Это [было] укрепляло <его> силы.", "Это было укрепляло его силы."),
    ("единичный сор", "глаза^~ посветлели", "глаза  посветлели"),
    ("три вместо «З»", "3десь тихо.", "Здесь тихо."),
    ("номер главки в строке", "Он опустил руки. * Глава вторая * 1", "Он опустил руки."),
    ("дефис, прижатый к слову", "слово- слово, трех- и пятилетний", "слово — слово, трех- и пятилетний"),
    ("дефис у чисел и кавычек", '1812-1813, "Да"-"Нет"', '1812—1813, "Да"—"Нет"'),
    ("апострофы", "пг’авда", "пг'авда"),
    ("остатки апострофов", "Он 'ушел.", "Он ушел."),
    ("перевернутая открывающая", "Он сказал: »да", "Он сказал: «да"),
    ("перевернутая закрывающая", "слово«, да", "слово», да"),
    ("пробелы у скобок и кавычек", "Он ( как все ) ушел , сел !", "Он (как все) ушел, сел!"),
    ("пробел перед многоточием", "слово ... слово", "слово... слово"),
    ("многоточие после знака", "Неужели?...", "Неужели?.."),
    ("многоточие между словами", "нет!...а", "нет!..а"),
    ("многоточие", "долго..... да", "долго… да"),
    ("запятая и точка", "Он ушел,. Она осталась.,", "Он ушел. Она осталась.,"),
    ("запятая и многоточие", "слово,… да", "слово… да"),
    ("обломки многоточия", "?., ее!. Да!..", "?.. ее!.. Да!.."),
    ("пробелы после тире", "— Да —нет, 1812—1813", "— Да — нет, 1812—1813"),
    ("тире вместо названия", "в — ской губернии", "в —ской губернии"),
    ("знаки вне алфавита", "слово§ и {еще}", "слово и еще"),
    ("пустые места", "Да. « » Нет.", "Да.  Нет."),
    ("знак в начале строки", ", и ушел", "и ушел"),
    ("точка после запятой", "кончит, .сопьется", "кончит, сопьется"),
    ("лишние пробелы", "Он ушел .", "Он ушел."),
    ("сверка многоточий", "Да?… Нет.… Что..", "Да?.. Нет… Что…"),
    ("разрыв на месте вычеркнутого", "Он вошел и\nсел у окна.", "Он вошел и сел у окна."),
]


@pytest.mark.parametrize(("name", "raw", "expected"), APPLIED_ALONE, ids=[case[0] for case in APPLIED_ALONE])
def test_rule_alone(nb, name, raw, expected):
    (rule,) = [rule for rule in nb["CLEANING_RULES"] if rule.name == name]
    text, hits = rule.apply(raw)
    assert text == expected and hits > 0


def test_every_rule_has_a_test(nb, monkeypatch):
    """A rule is tested alone, or some fragment of RULES comes out wrong without it."""
    rules, alone = nb["CLEANING_RULES"], {case[0] for case in APPLIED_ALONE}
    page = "Обложка\nА. П. Орлов\n" + PROSE + "\nПо французски: bonjour. И ушел.\nБерлин, 1926 г."
    cases = [(raw, expected) for _, raw, expected in RULES] + [(page, nb["clean_work"](page))]
    untested = []
    for rule in rules:
        monkeypatch.setitem(nb, "CLEANING_RULES", [other for other in rules if other is not rule])
        if rule.name not in alone and all(nb["clean_work"](raw) == expected for raw, expected in cases):
            untested.append(rule.name)
    assert untested == []
