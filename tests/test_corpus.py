"""Where the texts come from: the pinned archive, an archive with a list of its own, and the user's own files."""
import hashlib
import zipfile

import pytest
from conftest import run_forked

TEXT = "Осень стояла теплая.\n".encode()


def test_git_blob_id_is_that_of_git(nb):
    assert nb["git_blob_id"](b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_pinned_list_has_108_works(nb):
    blobs = nb["read_blobs"](nb["Path"]("data/blobs-0398a12.txt"))
    assert len(blobs) == 108 and "Sholokhov_TikhiiDon.txt" in blobs and "README.md" not in blobs
    assert all(len(blob) == 40 for blob in blobs.values())


def test_zip_and_folder_read_alike(nb, tmp_path, write_archive):
    files = {"A_Odin.txt": b"\xef\xbb\xbf" + TEXT, "B_Dva": TEXT * 2}  # a byte order mark, a name without suffix
    archive = write_archive(tmp_path, files, files)
    (tmp_path / "corpus").mkdir()
    for name, data in files.items():
        (tmp_path / "corpus" / name).write_bytes(data)
    from_zip, from_folder = (nb["load_corpus"](str(source), tmp_path) for source in (archive, tmp_path))
    assert from_zip == from_folder == ({"A_Odin": TEXT.decode(), "B_Dva": TEXT.decode() * 2}, [])


def test_altered_missing_and_unlisted_works(nb, tmp_path, write_archive):
    archive = write_archive(tmp_path, {"A_Odin.txt": TEXT, "B_Dva.txt": TEXT, "C_Tri.txt": TEXT},
                            {"A_Odin.txt": TEXT, "B_Dva.txt": TEXT + b"!", "D_Chetyre.txt": TEXT})
    works, problems = nb["load_corpus"](str(archive), tmp_path)
    assert list(works) == ["A_Odin"] and problems == ["B_Dva", "C_Tri"]


def test_download_survives_a_server_error_and_a_cut_answer(nb, tmp_path, serve, no_waiting):
    body = b"x" * 3000
    url, requests = serve((503, b""), (200, body[:1000], 3000), (200, body))
    target = nb["download"](url, tmp_path / "corpus.zip")
    assert target.read_bytes() == body and [p.name for p in tmp_path.iterdir()] == ["corpus.zip"] and len(requests) == 3


def test_a_download_is_known_by_its_address(nb, tmp_path, serve, write_archive):
    """Two addresses that end alike are two files, a second run asks no server, and the user's own corpus.zip stays."""
    own = write_archive(tmp_path, None, {"Svoi.txt": TEXT})
    kept = own.read_bytes()
    archives = [write_archive(tmp_path_, None, {name: TEXT}).read_bytes() for tmp_path_, name in
                ((tmp_path / "1", "Pervaya.txt"), (tmp_path / "2", "Vtoraya.txt")) if tmp_path_.mkdir() is None]
    (first, requests), (second, _) = serve((200, archives[0])), serve((200, archives[1]))
    for _ in range(2):
        assert list(nb["load_corpus"](first, tmp_path)[0]) == ["Pervaya"]
        assert list(nb["load_corpus"](second, tmp_path)[0]) == ["Vtoraya"]
    assert len(requests) == 1
    with pytest.raises(ValueError, match="CORPUS"):
        nb["load_corpus"](serve((200, b"<html>"))[0], tmp_path)
    assert own.read_bytes() == kept and len(list(tmp_path.glob("*.zip"))) == 3


def test_an_altered_work_of_the_pinned_corpus_stops_a_download(nb, tmp_path, serve, write_archive):
    """The names are those of the pinned commit, so its list holds, whatever the address."""
    archive = write_archive(tmp_path, None, {"Bulgakov_Diavoliada.txt": TEXT}).read_bytes()
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match="Bulgakov_Diavoliada"):
        nb["load_corpus"](serve((200, archive))[0], tmp_path / "new")
    assert not list((tmp_path / "new").iterdir())


def test_one_altered_work_among_good_ones_is_found(nb, real_corpus, tmp_path, serve):
    with zipfile.ZipFile(real_corpus) as archive:
        present = [name for name in archive.namelist() if name.rpartition("/")[2].startswith("Bulgakov_")]
        data = {name.rpartition("/")[2]: archive.read(name) for name in present}
    altered, *good = sorted(data)
    data[altered] += b" "
    with zipfile.ZipFile(tmp_path / "corpus.zip", "w") as archive:
        for name, content in data.items():
            archive.writestr(f"top/corpus/{name}", content)
    works, missing = nb["load_corpus"](str(tmp_path / "corpus.zip"), tmp_path)
    assert sorted(works) == [name.removesuffix(".txt") for name in good] and altered.removesuffix(".txt") in missing
    (tmp_path / "new").mkdir()
    with pytest.raises(ValueError, match=altered.removesuffix(".txt")):
        nb["load_corpus"](serve((200, (tmp_path / "corpus.zip").read_bytes()))[0], tmp_path / "new")


def write_own(folder):
    for name, text in {"Pushkin/Povest.txt": "Раз.", "Gogol/Povest.txt": "Два.", "Roman1.txt": "\ufeffТри.", "zametki.md": "нет",
                       "__MACOSX/._Roman1.txt": ""}.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(text, encoding="utf-8")


def test_own_texts_need_no_list(nb, tmp_path):
    """A folder or a zip of .txt files; of equal names the second keeps its folder, other files are left alone."""
    expected = ({"Pushkin_Povest": "Раз.", "Povest": "Два.", "Roman1": "Три."}, [])
    write_own(tmp_path / "texts")
    assert nb["load_corpus"](str(tmp_path / "texts"), tmp_path) == expected
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        for path in (path for path in (tmp_path / "texts").rglob("*") if path.is_file()):
            archive.write(path, path.relative_to(tmp_path / "texts"))
    assert nb["load_corpus"](str(tmp_path / "texts.zip"), tmp_path) == expected


@pytest.mark.parametrize("content", ["Старый файл.".encode("cp1251"), b" \n"], ids=["cp1251", "empty"])
def test_an_own_file_in_another_encoding_is_named(nb, tmp_path, content):
    """Nothing of the user's is left out in silence: an empty file stops the run as well."""
    (tmp_path / "horosho.txt").write_text("Да.", encoding="utf-8")
    (tmp_path / "staroe.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"UTF-8.*\['staroe'\]"):
        nb["load_corpus"](str(tmp_path), tmp_path)


def test_sample_is_whole_and_has_its_duplicate(nb):
    works, problems = nb["load_corpus"]("data/sample", nb["Path"]("data"))
    assert problems == [] and 12 <= len(works) <= 16 and sum(map(len, works.values())) > 35_000
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in works.values()]
    assert len(digests) - len(set(digests)) == 1


def test_real_archive_lacks_one_work_and_says_which(nb, real_corpus, tmp_path):
    works, problems = nb["load_corpus"](str(real_corpus), tmp_path)
    assert len(works) == 107 and problems == ["Sholokhov_TikhiiDon"]


@pytest.mark.parametrize("form", ["folder", "one_work"])
def test_own_texts_go_all_the_way_to_blocks(notebook, nb, tmp_path, form):
    """Sections 1 to 5 with the user's own folder: parts are found even for one work, or for names that end in digits."""
    works, _ = nb["load_corpus"]("data/sample", tmp_path)
    texts = list(dict.fromkeys(works.values()))
    (tmp_path / "own").mkdir()
    for number, text in enumerate(texts if form == "folder" else ["\n".join(texts)]):
        (tmp_path / "own" / f"Rasskaz{number}.txt").write_text(text, encoding="utf-8")
    run = run_forked(notebook, nb, range(6), tmp_path / "out", CORPUS=tmp_path / "own",
                     then="print(len(works), len(train_texts), len(validation_texts), len(test_texts), len(train_blocks))")
    assert run.returncode == 0, run.stdout[-2000:]
    count, *parts = map(int, run.stdout.splitlines()[-1].split())
    assert count == (len(texts) if form == "folder" else 1) and min(parts) > 0
