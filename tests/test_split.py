"""Section 3: groups and parts of works, repeats, the leak check."""
import random

import pytest
from conftest import run_sections

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
TEST_WORKS = {"Bulgakov_BelayaGvardiya", "Durova_IgraSudby", "Gogol_Mertvye", "Nabokov_Veschi_1972_Ilin"}


def works_in(split: dict, part: str) -> set:
    return {name for name, its in split.items() if its == part}


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
    names = ["Lesnov_Usadba1", "Lesnov_Usadba2", "X_Title", "X_Title_ver1", "X_Title_1957_Translator", "X_Titles",
             "Y_Zapiski", "Y_ZapiskiVracha"]
    groups = nb["group_works"](names)
    assert groups["Lesnov_Usadba1"] == groups["Lesnov_Usadba2"]
    assert groups["X_Title"] == groups["X_Title_ver1"] == groups["X_Title_1957_Translator"] != groups["X_Titles"]
    assert groups["Y_Zapiski"] == groups["Y_ZapiskiVracha"]


def test_digits_are_no_volumes_where_nothing_else_is_left(nb):
    groups = nb["group_works"]([f"book{i}" for i in range(1, 7)])
    assert len(set(groups.values())) == 6
    assert set(nb["split_works"](groups).values()) == {"train", "validation", "test"}


def test_fixed_split(nb):
    split, groups = nb["split_works"](REAL_NAMES), nb["group_works"](REAL_NAMES)
    assert works_in(split, "test") == TEST_WORKS
    assert works_in(split, "validation") == {"Dostoyevsky_BednyeLyudi", "Gippius_ChertovayaKukla", "Krjukov_Zyb", "Nabokov_Mashenka_1926",
                                             "Pushkin_Dubrovsky", "Tur_Starushka", "Turgenev_Rudin"}
    assert split["Tolstoi_VoynaIMir1"] == split["SKhvoshchinskaya_GorodskieIDerevenskie"] == "train"
    assert all(split[a] == split[b] for a in groups for b in groups if groups[a] == groups[b])


def test_a_fixed_work_takes_its_group_along(nb):
    split = nb["split_works"]([*REAL_NAMES, "Gogol_Mertvye2", "Gogol_Mertvye_1900_Someone", "Turgenev_Rudin_ver1"])
    assert split["Gogol_Mertvye2"] == split["Gogol_Mertvye_1900_Someone"] == "test" and split["Turgenev_Rudin_ver1"] == "validation"


@pytest.mark.parametrize("count", [3, 4, 12, 40])
def test_split_of_another_corpus(nb, count):
    names = [f"Author_Title{chr(65 + i % 26)}{'abc'[i // 26]}{volume}" for i in range(count) for volume in (1, 2)]
    split = nb["split_works"](names)
    assert split == nb["split_works"](reversed(names))
    assert set(split.values()) == {"train", "validation", "test"}
    assert all(split[name] == split[f"{name[:-1]}2"] for name in names)
    assert split[min(names)] == "train", "the first work is shown to the reader and must be a train work"
    for part in ("validation", "test"):
        assert len(works_in(split, part)) / 2 == max(1, round(count / 10))


def test_a_part_of_the_listed_corpus(nb):
    """Fixed works that would leave a part empty do not decide."""
    split = nb["split_works"](["Gogol_Mertvye", "Gogol_Viy", "Gogol_Taras", "Chekhov_Dama"])
    assert set(split.values()) == {"train", "validation", "test"}


def test_too_few_works(nb):
    with pytest.raises(ValueError, match="CORPUS.*три"):
        nb["split_works"](["A_B", "C_D"])


def make_paragraph(seed: int, count: int = 60) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("абвгдежзик", k=6)) for _ in range(count)) + "."


def test_repeats_leave_train_and_never_test(nb):
    shared, replies = make_paragraph(1), "— Да.\n— Нет."
    texts = {"a_train": f"{make_paragraph(2)}\n{shared}\n{replies}\n{make_paragraph(9)}", "b_test": f"{shared}\n{make_paragraph(3)}",
             "c_validation": f"{make_paragraph(4)}\n{shared}", "d_test": f"{shared}\n{make_paragraph(5)}"}
    kept, table = nb["drop_repeats"](texts, {name: name[2:] for name in texts})
    assert kept["b_test"] == texts["b_test"] and kept["d_test"] == texts["d_test"]
    assert kept["a_train"] == f"{make_paragraph(2)}\n{replies}\n{make_paragraph(9)}" and kept["c_validation"] == make_paragraph(4)
    assert dict(zip(table["убрано из"], table["абзацев"], strict=True)) == {"a_train": 1, "c_validation": 1}


def test_short_paragraphs_go_only_between_repeated_ones(nb):
    scene = [make_paragraph(1), "— Да.", "— Нет.", make_paragraph(2)]
    texts = {"A": "\n".join(scene), "B": "\n".join([make_paragraph(3), "— Да.", *scene, "— Да."])}
    kept, _ = nb["drop_repeats"](texts, {"A": "train", "B": "train"})
    assert kept == {"A": "\n".join(scene), "B": f"{make_paragraph(3)}\n— Да.\n— Да."}


def test_near_repeat_is_found(nb):
    first = make_paragraph(1)
    words = first.split()
    words[30] = "иначе"
    kept, _ = nb["drop_repeats"]({"A": first, "B": f"{' '.join(words)}\n{make_paragraph(5)}"}, {"A": "train", "B": "train"})
    assert kept["B"] == make_paragraph(5)


def test_a_quotation_is_no_repeat(nb):
    quotation = " ".join(make_paragraph(1).split()[:15])
    texts = {"A": make_paragraph(1), "B": f"{make_paragraph(5)} {quotation} {make_paragraph(6)}"}
    assert nb["drop_repeats"](texts, dict.fromkeys(texts, "train"))[0] == texts


def test_equal_works_and_early_versions(nb):
    text = f"{make_paragraph(1)}\n— Да."
    kept, table = nb["drop_repeats"]({"A": text, "A copy": text, "Own": "Ночь."}, dict.fromkeys(["A", "A copy", "Own"], "train"))
    assert kept == {"A": text, "Own": "Ночь."} and "A" in table["почему"].item()
    versions = {"X_ver1": text, "X_z": f"{text}\nНочь."}
    assert nb["drop_repeats"](versions, dict.fromkeys(versions, "train"))[0]["X_z"] == versions["X_z"]


def test_leak_is_measured_and_loud(nb):
    train, held_out = {"A": "\n".join(map(make_paragraph, range(100)))}, {"B": "\n".join(map(make_paragraph, range(100, 200)))}
    assert nb["leaked_share"](train, held_out) == 0
    one = " ".join(make_paragraph(5).split()[:14])  # two runs of thirteen words of some six thousand
    assert 0 < nb["leaked_share"](train, {"B": f"{held_out['B']}\n{one}"}) < 0.001
    with pytest.raises(ValueError, match="Утечка"):
        nb["leaked_share"](train, {"B": f"{held_out['B']}\n{make_paragraph(5)}"})


def test_a_leak_stops_the_notebook(notebook, nb, tmp_path):
    """A quotation that is no repeat: fifteen words of a training work inside a long paragraph of a test work."""
    names = [f"{letter}_Rasskaz" for letter in "ABCDEFGHIJKL"]
    split, texts = nb["split_works"](names), {name: make_paragraph(i).capitalize() for i, name in enumerate(names)}
    quoted, quoting = (next(name for name in names if split[name] == part) for part in ("train", "test"))
    texts[quoting] = f"{make_paragraph(50)[:-1]} {' '.join(texts[quoted].split()[20:35])} {make_paragraph(51)}".capitalize()
    (tmp_path / "own").mkdir()
    for name, text in texts.items():
        (tmp_path / "own" / f"{name}.txt").write_text(text, encoding="utf-8")
    run = run_sections(notebook, range(4), tmp_path / "out", CORPUS=tmp_path / "own")
    assert run.returncode == 1 and "ValueError: Утечка" in run.stderr.splitlines()[-1] and "Что убрано как повтор" in run.stdout


def test_leak_across_line_breaks(nb):
    with pytest.raises(ValueError, match="Утечка"):
        nb["leaked_share"]({"A": make_paragraph(1)}, {"B": make_paragraph(1).replace(" ", "\n")})
