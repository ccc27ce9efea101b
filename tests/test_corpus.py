import hashlib
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

TEXT = "Осень стояла теплая.\n".encode()


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.fixture
def serve():
    """serve(answers) -> URL of a local server that gives the answers (status, body, declared length) one by one."""
    servers = []

    def start(answers):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                status, body, length = answers.pop(0) if len(answers) > 1 else answers[0]
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        servers.append(HTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}/corpus.zip"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def make_zip(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"RussianNovels-master/corpus/{name}", data)
    return path


def write_blobs(nb, folder, files):
    lines = [f"{nb['git_blob_id'](data)}  corpus/{name}" for name, data in files.items()]
    (folder / "blobs.txt").write_text("\n".join(lines), encoding="utf-8")


def test_git_blob_id_is_that_of_git(nb):
    assert nb["git_blob_id"](b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


def test_pinned_list_has_108_works(nb):
    blobs = nb["read_blobs"](nb["Path"]("data/blobs-0398a12.txt"))
    assert len(blobs) == 108 and "corpus/Sholokhov_TikhiiDon.txt" in blobs
    assert all(len(blob) == 40 for blob in blobs.values())


def test_zip_and_folder_read_alike(nb, tmp_path):
    files = {"A_Odin.txt": TEXT, "B_Dva": TEXT * 2}
    write_blobs(nb, tmp_path, files)
    archive = make_zip(tmp_path / "corpus.zip", files)
    (tmp_path / "corpus").mkdir()
    for name, data in files.items():
        (tmp_path / "corpus" / name).write_bytes(data)
    from_zip, from_folder = (nb["load_corpus"](str(source), tmp_path) for source in (archive, tmp_path))
    assert from_zip == from_folder == ({"A_Odin": TEXT.decode(), "B_Dva": TEXT.decode() * 2}, [])


def test_altered_missing_and_unlisted_works(nb, tmp_path):
    write_blobs(nb, tmp_path, {"A_Odin.txt": TEXT, "B_Dva.txt": TEXT, "C_Tri.txt": TEXT})
    archive = make_zip(tmp_path / "corpus.zip", {"A_Odin.txt": TEXT, "B_Dva.txt": TEXT + b"!", "../../x.txt": TEXT})
    works, problems = nb["load_corpus"](str(archive), tmp_path)
    assert list(works) == ["A_Odin"] and problems == ["B_Dva", "C_Tri"]


def test_download_survives_a_server_error_and_a_cut_answer(nb, tmp_path, serve, no_waiting):
    body = b"x" * 3000
    url = serve([(503, b"", 0), (200, body[:1000], 3000), (200, body, 3000)])
    target = nb["download"](url, tmp_path / "corpus.zip")
    assert target.read_bytes() == body and [p.name for p in tmp_path.iterdir()] == ["corpus.zip"]


def test_from_a_url_another_archive_is_an_error(nb, tmp_path, serve):
    archive = make_zip(tmp_path / "other.zip", {"Bulgakov_Diavoliada.txt": TEXT}).read_bytes()
    with pytest.raises(ValueError, match="Bulgakov_Diavoliada"):
        nb["load_corpus"](serve([(200, archive, len(archive))]), tmp_path / "new")


def test_sample_is_whole_and_has_its_duplicate(nb):
    works, problems = nb["load_corpus"]("data/sample", nb["Path"]("data"))
    assert problems == [] and 12 <= len(works) <= 16 and sum(map(len, works.values())) > 35_000
    digests = [hashlib.sha1(text.encode()).hexdigest() for text in works.values()]
    assert len(digests) - len(set(digests)) == 1


def test_real_archive_lacks_one_work_and_says_which(nb, real_corpus, tmp_path):
    works, problems = nb["load_corpus"](str(real_corpus), tmp_path)
    assert len(works) == 107 and problems == ["Sholokhov_TikhiiDon"]
