"""Where the texts come from: the pinned archive, its copies, the user's own files; servers and archives that fail."""

import json
import unicodedata
import zipfile

import pytest
from conftest import run_forked

TEXT = "Осень стояла теплая.\n".encode()
BOM = b"\xef\xbb\xbf"


def load(nb, source, folder):
    return nb["load_corpus"](str(source), folder)


def test_pinned_list(nb, tmp_path):
    """The id is git's own; a file without .txt is a work, README.md is none; it holds where no other list is."""
    assert nb["git_blob_id"](b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"
    blobs = nb["read_blobs"](nb["Path"]("data/blobs-0398a12.txt"))
    assert len(blobs) == 108 and {"Sholokhov_TikhiiDon", "Vovchok_Zapiski prichyotnika"} < blobs.keys()
    assert "README.md" not in blobs and all(len(blob) == 40 for blob in blobs.values())
    (tmp_path / "Gogol_Viy.txt").write_bytes(TEXT)
    _, missing, altered = load(nb, tmp_path, tmp_path)
    assert altered == ["Gogol_Viy"] and sorted(blobs) == sorted([*altered, *missing])


@pytest.mark.parametrize("listed", [b"a\nb\n", b"a\r\nb\r\n", BOM + b"a\nb\n", b"a\r\nb\n"])
@pytest.mark.parametrize("text, same", [("a\nb\n", True), ("a\r\nb\r\n", True), ("a\nb", False), ("a\n\nb\n", False)])
def test_line_ends_do_not_change_a_listed_work(nb, listed, text, same):
    """A file whose line ends are mixed is known only as it is."""
    mixed = listed == b"a\r\nb\n"
    assert nb["is_same"](text, nb["git_blob_id"](listed)) == (same and not mixed)
    assert nb["is_same"](listed.decode("utf-8-sig"), nb["git_blob_id"](listed))


@pytest.mark.parametrize("packed", [True, False])
def test_a_copy_of_the_listed_works(nb, tmp_path, write_archive, packed):
    """Missing works are named, edited ones named and taken, own ones beside them taken."""
    listed = {"B_Dva.txt": TEXT, "A_Odin.txt": BOM + TEXT, "C_Tri.txt": TEXT, "D_Chetyre": TEXT}
    stored = listed | {"A_Odin.txt": TEXT.replace(b"\n", b"\r\n"), "B_Dva.txt": BOM + TEXT + b"!", "Moya.txt": TEXT}
    del stored["C_Tri.txt"]
    source = write_archive(tmp_path, listed, stored)
    if not packed:
        zipfile.ZipFile(source).extractall(tmp_path)
        source = tmp_path
    works, missing, altered = load(nb, source, tmp_path)
    assert list(works) == ["A_Odin", "B_Dva", "D_Chetyre", "Moya"] and works["B_Dva"] == TEXT.decode() + "!"
    assert (missing, altered) == (["C_Tri"], ["B_Dva"])


@pytest.mark.parametrize("stored, named", [
    ({"A.txt": TEXT, "B.txt": TEXT + b"!"}, "B"), ({"A.txt": TEXT}, "B"), ({"A.txt": TEXT, "B.txt": b"\xff"}, "B"),
    ({"A.txt": TEXT, "B.txt": TEXT, "Own.txt": b""}, "Own"),
], ids=["altered", "missing", "damaged", "own"])  # fmt: skip
def test_a_download_must_equal_the_list(nb, tmp_path, serve, write_archive, stored, named):
    archive = write_archive(tmp_path, dict.fromkeys(("A.txt", "B.txt"), TEXT), stored)
    url, _ = serve((200, archive.read_bytes()))
    before = set(tmp_path.iterdir())
    with pytest.raises(ValueError, match=rf"CORPUS=http.*\['{named}'\]"):
        load(nb, url, tmp_path)
    assert set(tmp_path.iterdir()) == before, "a bad download stays"


def test_a_download_is_known_by_its_address(nb, tmp_path, serve, write_archive, no_waiting):
    """An error and a cut answer are tried again; a second run asks no server; another address is another file."""
    bodies = [write_archive(tmp_path, None, {f"{name}.txt": TEXT}).read_bytes() for name in ("Pervaya", "Vtoraya")]
    (tmp_path / "corpus.zip").unlink()
    first, requests = serve((503, b""), (200, bodies[0][:90], len(bodies[0])), (200, bodies[0]))
    second, _ = serve((200, bodies[1]))
    for _ in range(2):
        assert list(load(nb, first, tmp_path)[0]) == ["Pervaya"]
        assert list(load(nb, second, tmp_path)[0]) == ["Vtoraya"]
    assert len(requests) == 3 and len(list(tmp_path.iterdir())) == len(list(tmp_path.glob("*.zip"))) == 2


@pytest.mark.parametrize("answer", [(500, b""), (404, b""), (200, b"half", 4000), (200, b"late", None, 1.5)])
def test_a_bad_server_ends_in_one_message(nb, tmp_path, serve, no_waiting, capsys, answer):
    url, requests = serve(answer)
    with pytest.raises(ConnectionError, match="CORPUS=http"):
        nb["download"](url, tmp_path / "corpus.zip", attempts=3, timeout=(1, 0.3))
    assert len(requests) == 3 == capsys.readouterr().out.count("Попытка") and not list(tmp_path.iterdir())


def test_full_disk(notebook, nb, tmp_path, serve):
    url, _ = serve((200, b"x" * 3_000_000))
    (tmp_path / "data").mkdir()
    code = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
download({url!r}, Path({str(tmp_path)!r}) / "data" / "corpus.zip", attempts=1)
"""
    run = run_forked(notebook, nb, [], tmp_path / "out", script=code)
    assert run.returncode == 1 and "DATA_DIR" in run.stdout.splitlines()[-1]
    assert not list((tmp_path / "data").iterdir())


class UnmarkedInfo(zipfile.ZipInfo):
    """A name in any encoding, without the mark of UTF-8."""

    encoding = "cp866"

    def _encodeFilenameFlags(self):
        return self.filename.encode(self.encoding), self.flag_bits & ~0x800


class MacInfo(UnmarkedInfo):
    encoding = "utf-8"


@pytest.mark.parametrize("info, form", [(UnmarkedInfo, "NFC"), (MacInfo, "NFD"), (zipfile.ZipInfo, "NFC")])
@pytest.mark.parametrize("name", ["Змей", "Ёлка", "Snow_1812"])
def test_names_in_a_zip(nb, tmp_path, info, form, name):
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        archive.writestr(info(unicodedata.normalize(form, f"книги/{name}.txt")), TEXT)
    assert list(load(nb, tmp_path / "corpus.zip", tmp_path)[0]) == [name]


@pytest.mark.parametrize("packed", [False, True])
def test_own_files(nb, tmp_path, packed):
    """Equal names are all kept; hidden files, other kinds and a list of hashes are no works."""
    texts = {"Gogol/Povest.txt": "1", "Pushkin/Povest.TXT": "2", "Pushkin/Povest.txt": "3", "Roman.txt": "\ufeff4"}
    source = tmp_path / "own"
    for name, text in (texts | {"zametki.md": "5", "__MACOSX/._Roman.txt": "6", "blobs.txt": "7"}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text, encoding="utf-8")
    if packed:
        with zipfile.ZipFile(tmp_path / "own.zip", "w") as archive:
            for path in sorted(source.rglob("*")):
                archive.write(path, path.relative_to(source))
        source = tmp_path / "own.zip"
    works, missing, altered = load(nb, source, tmp_path)
    assert sorted(works.values()) == ["1", "2", "3", "4"] and (missing, altered) == ([], [])
    assert sorted(name.split("_")[0] for name in works) == ["Povest"] * 3 + ["Roman"]


@pytest.mark.parametrize(
    "data", ["Старое".encode("cp1251"), "Да.".encode("utf-16"), "Да. Нет".encode("utf-16-le"), b" \r\n", BOM, b""]
)
def test_a_file_that_is_no_text_is_named(nb, tmp_path, data):
    (tmp_path / "horosho.txt").write_bytes(TEXT)
    (tmp_path / "staroe.txt").write_bytes(data)
    with pytest.raises(ValueError, match=r"CORPUS=.*\['staroe'\].*UTF-8"):
        load(nb, tmp_path, tmp_path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("spare", [1, 0, -1])
def test_limit_of_all_texts_together(nb, tmp_path, monkeypatch, packed, spare):
    """No silent cut: a byte over the limit is an error that names the file."""
    files = {"A.txt": b"x" * 700, "B.txt": b"y" * 300}
    monkeypatch.setitem(nb, "MAX_BYTES", 1000 + spare)
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    source = tmp_path / "corpus.zip" if packed else tmp_path
    if spare < 0:
        with pytest.raises(ValueError, match=r"CORPUS=.*\['B'\]"):
            load(nb, source, tmp_path)
    else:
        assert {name: len(text) for name, text in load(nb, source, tmp_path)[0].items()} == {"A": 700, "B": 300}


def test_hostile_members_have_no_way_in(nb, tmp_path, monkeypatch, write_archive):
    """A link and a path that climbs out are bytes like others; a bomb is not unpacked; nothing is written."""
    link = zipfile.ZipInfo("top/corpus/Link.txt")
    link.external_attr = 0o120777 << 16
    listed = {"Good.txt": TEXT, "Link.txt": TEXT}
    path = write_archive(tmp_path, listed, {"Good.txt": TEXT, link: b"/etc/passwd", "../../../climbed.txt": TEXT})
    before = set(tmp_path.parent.rglob("*"))
    works, _, altered = load(nb, path, tmp_path)
    assert works["Link"] == "/etc/passwd" and altered == ["Link"] and "climbed" in works
    monkeypatch.setitem(nb, "MAX_BYTES", 2**20)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Bomb.txt", bytes(2**26))
    with pytest.raises(ValueError, match=r"\['Bomb'\]"):
        load(nb, path, tmp_path)
    assert set(tmp_path.parent.rglob("*")) == before


def test_what_is_no_archive(nb, tmp_path, write_archive, serve):
    path = write_archive(tmp_path, None, {"A.txt": TEXT, "B.txt": TEXT * 9})
    whole = path.read_bytes()
    path.write_bytes(whole[:50] + b"\xff" * 10 + whole[60:])
    with pytest.raises(ValueError, match=r"CORPUS=.*\['A'\]"):
        load(nb, path, tmp_path)
    for content in (whole[: len(whole) // 2], b"", b"PK", b"<html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="CORPUS=.*все файлы.*целый zip"):
            load(nb, path, tmp_path)
    with pytest.raises(ValueError, match="CORPUS=.*nowhere.zip: нет такого файла"):
        load(nb, tmp_path / "nowhere.zip", tmp_path)
    url, _ = serve((200, b"<html>Sign in</html>"))
    with pytest.raises(ValueError, match="CORPUS=http"):
        load(nb, url, tmp_path)
    assert path.exists() and [p.name for p in tmp_path.iterdir()] == ["corpus.zip"]


def test_section(notebook, nb, tmp_path):
    """One dataset of all works, the counts of metrics.json, a short passage even from one giant line."""
    for name, text in {"Bor": "Вечер настал.\n" * 40, "Ada": "\n\nБыло утро. " * 9 + "x" * 9000}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    then = "print(json.dumps([metrics['corpus'], corpus[:], list(works.values()), raw_passage]))"
    run = run_forked(notebook, nb, [0, 1], tmp_path / "out", then=then, CORPUS=tmp_path)
    assert run.returncode == 0, run.stdout[-2000:]
    counts, dataset, texts, passage = json.loads(run.stdout.splitlines()[-1])
    assert dataset == {"name": ["Ada", "Bor"], "text": texts}
    assert counts == {"works": 2, "missing": [], "chars_raw": sum(map(len, texts))}
    assert 1 <= len(passage.split("\n")) <= 12 and len(passage) <= 5000 and passage in texts[0]
