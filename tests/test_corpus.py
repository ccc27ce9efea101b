import hashlib

import pytest

TEXT = "Осень стояла теплая.\n".encode()


def test_git_blob_id_is_that_of_git(nb):
    assert nb["git_blob_id"](b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_pinned_list_has_108_works(nb):
    blobs = nb["read_blobs"](nb["Path"]("data/blobs-0398a12.txt"))
    assert len(blobs) == 108 and "corpus/Sholokhov_TikhiiDon.txt" in blobs
    assert all(len(blob) == 40 for blob in blobs.values())


def test_zip_and_folder_read_alike(nb, tmp_path, write_archive):
    files = {"A_Odin.txt": TEXT, "B_Dva": TEXT * 2}
    archive = write_archive(tmp_path, files, files)
    (tmp_path / "corpus").mkdir()
    for name, data in files.items():
        (tmp_path / "corpus" / name).write_bytes(data)
    from_zip, from_folder = (nb["load_corpus"](str(source), tmp_path) for source in (archive, tmp_path))
    assert from_zip == from_folder == ({"A_Odin": TEXT.decode(), "B_Dva": TEXT.decode() * 2}, [])


def test_altered_missing_and_unlisted_works(nb, tmp_path, write_archive):
    archive = write_archive(tmp_path, {"A_Odin.txt": TEXT, "B_Dva.txt": TEXT, "C_Tri.txt": TEXT},
                            {"A_Odin.txt": TEXT, "B_Dva.txt": TEXT + b"!", "../../x.txt": TEXT})
    works, problems = nb["load_corpus"](str(archive), tmp_path)
    assert list(works) == ["A_Odin"] and problems == ["B_Dva", "C_Tri"]


def test_download_survives_a_server_error_and_a_cut_answer(nb, tmp_path, serve, no_waiting):
    body = b"x" * 3000
    url, _ = serve((503, b""), (200, body[:1000], 3000), (200, body))
    target = nb["download"](url, tmp_path / "corpus.zip")
    assert target.read_bytes() == body and [p.name for p in tmp_path.iterdir()] == ["corpus.zip"]


def test_from_a_url_another_archive_is_an_error(nb, tmp_path, serve, write_archive):
    archive = write_archive(tmp_path, {}, {"Bulgakov_Diavoliada.txt": TEXT}).read_bytes()
    with pytest.raises(ValueError, match="Bulgakov_Diavoliada"):
        nb["load_corpus"](serve((200, archive))[0], tmp_path / "new")


def test_sample_is_whole_and_has_its_duplicate(nb):
    works, problems = nb["load_corpus"]("data/sample", nb["Path"]("data"))
    assert problems == [] and 12 <= len(works) <= 16 and sum(map(len, works.values())) > 35_000
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in works.values()]
    assert len(digests) - len(set(digests)) == 1


def test_real_archive_lacks_one_work_and_says_which(nb, real_corpus, tmp_path):
    works, problems = nb["load_corpus"](str(real_corpus), tmp_path)
    assert len(works) == 107 and problems == ["Sholokhov_TikhiiDon"]
