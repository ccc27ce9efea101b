"""Section 2 through `clean_work`: one test for each rule on the dirt it was written for, and one for each thing that must survive."""
import re

import pytest

PROSE = ("Утро было тихое, и над рекой стоял туман; лодки у берега еще спали, и только сторож ходил по мосткам, стуча сапогами да "
         "покашливая.")
OLD = ("Въ одинъ изъ томительныхъ лѣтнихъ дней старыя лодки стояли у берега, и только сторожъ, человѣкъ больной и одинокій, ходилъ по "
       "мосткамъ, стуча сапогами, да новыя сѣти висѣли на кольяхъ.")
OLD_CLEAN = ("В один из томительных летних дней старые лодки стояли у берега, и только сторож, человек больной и одинокий, ходил по "
             "мосткам, стуча сапогами, да новые сети висели на кольях.")

RULES = [
    ("line breaks", "Он вошел.\r\nОна молчала.\rТихо.", "Он вошел.\nОна молчала.\nТихо."),
    ("html entity", "А т&#1077; письма &quot;целы&quot;.", "А те письма «целы»."),
    ("decomposed letter", "Он мои\u0306 друг.", "Он мой друг."),
    ("soft hyphen as a dash", "   \u00AD Зачем? – спросил он.", "— Зачем? — спросил он."),
    ("soft hyphen in a word", "Он вошел в безоб\u00ADразный зал.", "Он вошел в безобразный зал."),
    ("control character", "Тем \x07паче он молчал.", "Тем паче он молчал."),
    ("stress mark", "Бо\u0301льшая часть ушла.", "Большая часть ушла."),
    ("no-break space and tab", "Он\u00A0вошел\tтихо.", "Он вошел тихо."),
    ("bullet as a dash", "• Университет, - сказал он.", "— Университет, — сказал он."),
    ("box drawing for letters", "Как╕е странные наряды!", "Какие странные наряды!"),
    ("hash for a hyphen", "Что#то случилось, да#с.", "Что-то случилось, да-с."),
    ("hash for a dash", "Он помнил, #вспоминал с умилением.", "Он помнил, — вспоминал с умилением."),
    ("ё", "Её звали Алёна. Ёж спал.", "Ее звали Алена. Еж спал."),
    ("Roman numerals", "В конце XVIII века жил Людовик XVI.", "В конце 18 века жил Людовик 16."),
    ("single Roman numerals", "При Николае I и в главе X говорится.", "При Николае 1 и в главе Х говорится."),
    ("N for a number", "В доме N_13 и в квартире N 50 темно.", "В доме № 13 и в квартире № 50 темно."),
    ("N for a name", "Он приехал в город NN. Стояла осень.", "Он приехал в город НН. Стояла осень."),
    ("Latin initial", "Вошел мистер R. и поклонился.", "Вошел мистер Р. и поклонился."),
    ("an initial is no numeral", "Княгиня X. молчала.", "Княгиня Х. молчала."),
    ("an initial at the end is no numeral", "Он ехал в лабораторию к X.", "Он ехал в лабораторию к Х."),
    ("an elided name is no numeral", "Они ехали из X*** губернии.", "Они ехали из Х*** губернии."),
    ("Latin doubles in a word", "Я посмотрeл на нeго.", "Я посмотрел на него."),
    ("Latin double as a word", "Я ждал, a он молчал. He плачь. Ax, это пустяк!", "Я ждал, а он молчал. Не плачь. Ах, это пустяк!"),
    ("m-me and m-lle", "Вошли m-me Денисова и m-lle Дроздова.", "Вошли мадам Денисова и мадемуазель Дроздова."),
    ("spoken names", "— Lise, где maman? — спросил Nicolas.", "— Лиз, где маман? — спросил Николя."),
    ("spoken address", "— Mon cher ami, я устал.", "— Мон шер ами, я устал."),
    ("old letters and hard signs", OLD, OLD_CLEAN),
    ("old letters anywhere", "Лѣто, Ѳедор и міръ.", "Лето, Федор и мир."),
    ("old pronouns", f"{OLD}\nОнѣ молчали, и однѣ ушли.", f"{OLD_CLEAN}\nОни молчали, и одни ушли."),
    ("old endings", f"{OLD}\nПрошлаго года послѣднія надежды больнаго и ея слова.",
     f"{OLD_CLEAN}\nПрошлого года последние надежды больного и ее слова."),
    ("old prefixes", f"{OLD}\nРазсказъ про безпечныхъ людей, ужь конченный.", f"{OLD_CLEAN}\nРассказ про беспечных людей, уж конченный."),
    ("то-есть", "Он, то-есть князь, молчал.", "Он, то есть князь, молчал."),
    ("justified line", "Он  вошел   и  сел.", "Он вошел и сел."),
    ("line broken in a sentence", "Он вошел и\nсел у окна.", "Он вошел и сел у окна."),
    ("word broken by a question mark", "Князь вы?шел из комнаты, и Бо?напарте тоже.", "Князь вышел из комнаты, и Бонапарте тоже."),
    ("note in braces", "Она улыбнулась {75} и ушла {в духе времени (франц.).}.", "Она улыбнулась и ушла."),
    ("note mark", "Он улыбнулся. [98] И слово* ушло (*1) прочь. <...> Все.", "Он улыбнулся. И слово ушло прочь. Все."),
    ("note paragraph", "Он улыбнулся.\n   [(сноска 57)] Дело в том, что я терплю.\nИ ушел.", "Он улыбнулся.\nИ ушел."),
    ("note in a paragraph", "Он ушел. (*1) кто есть кто (англ.)\nОна осталась.", "Он ушел.\nОна осталась."),
    ("editors' paragraph", "Он улыбнулся.\n* Печатается по рукописи. -- Ред.\nИ ушел.", "Он улыбнулся.\nИ ушел."),
    ("translation paragraph", "Он улыбнулся.\n  12 маленький боярин (франц.)\nИ ушел.", "Он улыбнулся.\nИ ушел."),
    ("glued note digit", "Вера1 пришла. Он сказал «нет»2 и ушел.", "Вера пришла. Он сказал «нет» и ушел."),
    ("translation with the language named", "Он сказал «бонжур» (здравствуйте, франц.) и сел.", "Он сказал «бонжур» и сел."),
    ("editors' note", "Ходил [перед праздником -- Ред.] в церковь.", "Ходил в церковь."),
    ("author's square brackets", "Он шел [так ему казалось] домой.", "Он шел (так ему казалось) домой."),
    ("one word in square brackets", "Старец [нищий] ушел прочь. Он долго смотрел в темное окно.",
     "Он долго смотрел в темное окно."),
    ("letters put in by an editor", "Она [у]видит и [не] скажет.", "Она увидит и не скажет."),
    ("hyphen for a dash", "- Живите, - сказал он.", "— Живите, — сказал он."),
    ("double hyphen and en dash", "Он -- друг. Она – тоже.", "Он — друг. Она — тоже."),
    ("glued dash", "Он сел,-- устал —и уснул.", "Он сел, — устал — и уснул."),
    ("apostrophes as quotes", "'Встала, матушка!' - отвечал голос.", "«Встала, матушка!» — отвечал голос."),
    ("odd apostrophes", "Пг’авда, ма` шер.", "Пг'авда, ма шер."),
    ("straight quotes", 'Он сказал: "Да". "Нет!" -- ответила она.', "Он сказал: «Да». «Нет!» — ответила она."),
    ("German quotes", "Его „водит“ нужда.", "Его «водит» нужда."),
    ("space before a closing quote", "«Я думал... » — сказал он. «Ах, нет ».", "«Я думал…» — сказал он. «Ах, нет»."),
    ("space before a mark", "Он вошел , сел ( как все ) . Она : нет ... да.", "Он вошел, сел (как все). Она: нет… да."),
    ("ellipsis", "Он ждал... долго..... . . .", "Он ждал… долго…"),
    ("ellipsis after a mark", "Неужели?... Да!… Взять с собою?., ее!.", "Неужели?.. Да!.. Взять с собою?.. ее!.."),
    ("repeated marks", "Да,, нет!!!!! Как???? Что!? Куда!!?", "Да, нет!!! Как??? Что?! Куда?!"),
    ("missing space", "Он вошел,сел.Она молчала!А он ждал.", "Он вошел, сел. Она молчала! А он ждал."),
    ("stars in a name", "Госпожа Г* и село ** рядом.", "Госпожа Г*** и село *** рядом."),
    ("separator", "Он ушел.\n* * *\n-----\nУтро настало.", "Он ушел.\nУтро настало."),
    ("chapter heads", "Глава первая\nI\nУтро настало.\n12.\nКонец первой части", "Утро настало."),
    ("chapter ten", "Он ушел.\nX.\nУтро настало.", "Он ушел.\nУтро настало."),
    ("chapter title after a head", f"{PROSE}\nГлава пятая\nНехорошая квартирка\n{PROSE}", f"{PROSE}\n{PROSE}"),
    ("chapter title in capitals", "Он ушел.\nVIII. БРЕД НОЧИ.\nУтро настало.", "Он ушел.\nУтро настало."),
    ("title page and tail", f"Владимир Иванов\nТуман\nПеревод с английского П. Петрова\n\n{PROSE}\n\n"
     "Берлин, 1926\n\nПримечания\n1 Туман.\n", PROSE),
    ("early notes end no book", "\n".join([PROSE, PROSE, "Примечания", *[PROSE] * 6]), "\n".join([PROSE] * 8)),
    ("foreign sentence", "— Eh bien, mon prince. Ну, здравствуйте, садитесь и рассказывайте.",
     "— Ну, здравствуйте, садитесь и рассказывайте."),
    ("sign outside the alphabet", "Мутные глаза ~ посветлели. Он долго смотрел в темное окно.", "Он долго смотрел в темное окно."),
    ("other alphabets", "Он читал 漢字 и λόγος. Она долго смотрела в окно.", "Она долго смотрела в окно."),
    ("paragraph with nothing left to read", f"— Charmant, charmant, c'est bien vous! Да.\n{PROSE}", PROSE),
    ("paragraph broken by a foreign one", "Он сказал, что придет\nBonjour, mon prince!\nзавтра же утром.",
     "Он сказал, что придет завтра же утром."),
    ("odd sign before a line", ". Остров поклонился.\n— — Да.", "Остров поклонился.\n— Да."),
    ("quote without its pair", "Он думал. «Quelle pluie. Надо идти, но как же не хочется», — решил он и встал.",
     "Он думал. Надо идти, но как же не хочется, — решил он и встал."),
]


@pytest.mark.parametrize(("raw", "expected"), [pytest.param(raw, expected, id=name) for name, raw, expected in RULES])
def test_rule(nb, raw, expected):
    assert nb["clean_work"](raw) == expected


SURVIVORS = {
    "replies": "— Да! — сказал он. — Иду.\n— …\n— Да.\n— Да.",
    "quotes with marks": "Он спросил: «Ты?!» — и замолчал. Неужели?.. Да!.. Нет…",
    "hyphens": "Кто-то из-за угла; по-русски, Ростов-на-Дону. Салтыков-Щедрин и Мамин-Сибиряк. Двух- и трехэтажные дома.",
    "numbers": "В 1812 году было 100000 человек, в 3 часа 15 минут. Прошло 20 лет — 1812—1832.",
    "abbreviations": "Приехал г. Иванов, т. е. тот самый, и т. д.",
    "apostrophe within a word": "— Пг'авда, чог'т возьми! — кричал Денисов.",
    "single letters are no spaced word": "Что ж, и я к вам. А я б ушел. Я и в саду.",
    "verse": "Я помню чудное мгновенье:\nПередо мной явилась ты,\nКак мимолетное виденье,\nКак гений чистой красоты.",
    "words like old ones": "Благо, что он молчал; живая статуя, здания и знания, ее и нее, отъезд, подъезд, съезд.",
    "modern ending like an old one": "Он сказал твердо: блага много, а шага назад нет.",
    "brackets with a pronoun": "Он молчал (что в нем было странного, она не знала) и ждал (как в итальянской опере).",
    "brackets with a language": "Она говорила (на своем немецком языке) долго.",
    "numbered rules": "1. Безусловно воспрещается покидать здание тюрьмы.\n2. Кротость узника есть украшение темницы.",
    "inscription in capitals": "На двери было написано:\nБЮРО ПРЕТЕНЗИЙ И ЖАЛОБ\nОн постучал.",
    "quoted letter": "Она прочла:\n«Приезжай скорее. Твой Петр».\nИ заплакала.",
    "comma before a dash": "Он сел, — устал, — и уснул; но, впрочем, ненадолго.",
    "elided name": "У богатого К…ва и у Ф. В…ского.",
    "short sentences": "Да. Нет. Да.",
    "early notes": f"{PROSE}\nКомментарии\n" + "\n".join([PROSE] * 20),
}


@pytest.mark.parametrize("name", SURVIVORS)
def test_survives(nb, name):
    expected = SURVIVORS[name].replace("Комментарии\n", "")  # the heading itself goes, the book after it stays
    assert nb["clean_work"](SURVIVORS[name]) == expected


def test_a_latin_word_beside_keeps_the_rest_latin(nb):
    """Of «la maman R.» nothing may turn Russian: the sentence goes whole."""
    assert nb["clean_work"](f"Вошла la maman R. chez nous.\n{PROSE}") == PROSE


def test_modern_words_keep_their_hard_sign_in_a_modern_text(nb):
    assert "в слог ъ" in nb["clean_work"](f"{PROSE}\n" * 20 + "Он писал в слог ъ.")


def test_old_endings_are_mended_only_in_old_texts(nb):
    assert nb["clean_work"](f"{PROSE}\n" * 40 + "Ея слова и прошлаго года.").endswith("Ея слова и прошлаго года.")


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


@pytest.mark.parametrize("raw", [raw for _, raw, _ in RULES] + list(SURVIVORS.values()))
def test_idempotent(nb, raw):
    once = nb["clean_work"](raw)
    assert nb["clean_work"](once) == once


@pytest.mark.parametrize("raw", ["", "\n \n", "Only Latin here. Nothing else.", "* * *"])
def test_nothing_russian_gives_an_empty_text(nb, raw):
    assert nb["clean_work"](raw) == ""


@pytest.mark.parametrize(("text", "sentences"), [
    ("Он ушел. Она осталась.", ["Он ушел.", " Она осталась."]),
    ("— Да! — сказал он. — Иду.\nТишина.", ["— Да! — сказал он.", " — Иду.\n", "Тишина."]),
    ("А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п.", ["А. С. Пушкин жил в г. Москве, т. е. здесь, и т. д. и т. п."]),
    ("В 1812 г. Наполеон пришел.", ["В 1812 г.", " Наполеон пришел."]),
    ("Неужели?.. Да!.. Ох… Нет.", ["Неужели?..", " Да!..", " Ох…", " Нет."]),
    ("Он спросил: «Кто там?» «Я», — ответила она.", ["Он спросил: «Кто там?»", " «Я», — ответила она."]),
    ("Ох... как же! и все?", ["Ох... как же! и все?"]),
])
def test_split_sentences(nb, text, sentences):
    assert nb["split_sentences"](text) == sentences


@pytest.mark.parametrize("text", [
    "", "\n\n", "  a. B \r\n\r\n«В!»  — c?\t", PROSE, "А. " * 2000, "... " * 2000, "«" * 500 + "Б. А" + "»" * 500])
def test_split_sentences_is_lossless(nb, text):
    assert "".join(nb["split_sentences"](text)) == text


def test_changes_and_losses_are_counted_by_rule(nb):
    text, hits, removed = nb["clean_and_count"](f"{PROSE}\nОна сказала bonjour и еще много слов.\nПро {{заметка}} запас... {PROSE}")
    assert hits["примечания в фигурных скобках"] == hits["многоточие"] == hits["предложения с чужими буквами и знаками"] == 1
    assert max(removed, key=removed.get) == "предложения с чужими буквами и знаками" and "bonjour" not in text


@pytest.mark.parametrize("work", [
    "Pushkin_Pikovaya", "Vovchok_Zateinik", "Chekhov_Dyadya", "NKhvoshchinskaya_PoslijePotopa", "Gan_SudSveta"])
def test_real_works_come_out_clean_and_almost_whole(nb, real_corpus, tmp_path, work):
    raw = nb["load_corpus"](str(real_corpus), tmp_path)[0][work]
    clean = nb["clean_work"](raw)
    assert nb["clean_work"](clean) == clean
    assert not nb["re"].search(r"[^А-Яа-я0-9 \n.,!?…:;—«»()'№%°*-]|\n\n|  ", clean)
    assert len(re.findall("[А-Яа-яЁё]", clean)) > 0.93 * len(re.findall("[А-Яа-яЁё]", raw))
