"""Faults provoked for real: broken servers and archives, killed processes, a full disk, weights that could run code."""
import json
import os
import signal
import time
import zipfile
from contextlib import suppress

import pytest
from conftest import finish, run_forked, start_sections

TEXT = "Осень стояла теплая.\n".encode()


@pytest.mark.parametrize("answer, attempts", [((500, b""), 3), ((404, b""), 3), ((200, b"half", 4000), 3),
                                              ((200, b"late", None, 1.5), 3)], ids=["500", "404", "half", "stall"])
def test_bad_server_ends_in_one_message_without_a_file(nb, tmp_path, serve, no_waiting, capsys, answer, attempts):
    url, requests = serve(answer)
    with pytest.raises(ConnectionError, match="CORPUS=.*zip"):
        nb["download"](url, tmp_path / "corpus.zip", attempts=3, timeout=(1, 0.3))
    assert len(requests) == attempts == capsys.readouterr().out.count("Попытка") and not list(tmp_path.iterdir())


def test_html_page_instead_of_the_archive(nb, tmp_path, serve):
    with pytest.raises(ValueError, match="целый zip"):
        nb["load_corpus"](serve((200, b"<html>Sign in</html>"))[0], tmp_path)
    assert not list(tmp_path.iterdir())


def test_full_disk(notebook, nb, tmp_path, serve):
    url, _ = serve((200, b"x" * 3_000_000))
    (tmp_path / "data").mkdir()
    code = f"""
import resource, pathlib
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
download({url!r}, pathlib.Path({str(tmp_path)!r}) / "data" / "corpus.zip", attempts=1)
"""
    run = run_forked(notebook, nb, [], tmp_path / "out", script=code)
    assert run.returncode == 1 and "DATA_DIR" in run.stdout.splitlines()[-1] and not list((tmp_path / "data").iterdir())


def test_hostile_members_have_no_way_in(nb, tmp_path, monkeypatch, write_archive):
    """A bomb, a link, a path that climbs out and a replaced work: none is taken for a work of the list, nothing is written."""
    monkeypatch.setitem(nb, "MAX_WORK_BYTES", 2**20)
    link = zipfile.ZipInfo("top/corpus/Link.txt")
    link.external_attr = 0o120777 << 16
    listed = {"Good.txt": TEXT, "Bomb.txt": TEXT, "Link.txt": TEXT, "Replaced.txt": TEXT}
    path = write_archive(tmp_path, listed, {
        "Good.txt": TEXT, "Bomb.txt": b"\0" * 2**26, link: b"/etc/passwd", "Replaced.txt": TEXT + b"!", "../../../climbed.txt": TEXT})
    before = set(tmp_path.parent.rglob("*"))
    works, problems = nb["load_corpus"](str(path), tmp_path)
    assert list(works) == ["Good"] and problems == ["Bomb", "Link", "Replaced"]
    assert max(map(len, nb["read_files"](path, listed).values())) == 2**20 and set(tmp_path.parent.rglob("*")) == before


def test_truncated_and_empty_archives_are_named(nb, tmp_path, write_archive):
    path = write_archive(tmp_path, {"A.txt": TEXT, "B.txt": TEXT * 9}, {"A.txt": TEXT, "B.txt": TEXT * 9})
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[50:60] = b"\xff" * 10
    path.write_bytes(damaged)
    works, problems = nb["load_corpus"](str(path), tmp_path)
    assert (list(works), problems) == (["B"], ["A"])
    for content in (whole[:len(whole) // 2], b"", b"PK"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="CORPUS=.*целый zip"):
            nb["load_corpus"](str(path), tmp_path)
    with pytest.raises(ValueError, match="nowhere.zip.*zip"):
        nb["load_corpus"](str(tmp_path / "nowhere.zip"), tmp_path)
    assert path.exists()


def test_pickled_weights_are_not_opened(notebook, nb, smoke, tmp_path):
    """A model folder whose weights are a pickle is refused before anything in it could run."""
    (tmp_path / "model").mkdir()
    for file in (smoke["folder"] / "pretrain").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "model" / file.name).write_bytes(file.read_bytes())
    bomb = f"cos\nmkdir\n(V{tmp_path / 'ran'}\ntR.".encode()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(bomb)
    run = run_forked(notebook, nb, [0], tmp_path / "out", SFT_MODEL=tmp_path / "model")
    assert run.returncode == 1 and "safetensors" in run.stdout.splitlines()[-1] and not (tmp_path / "ran").exists()


def kill_after(process, folder, stage: str, checkpoints: int) -> None:
    """Kills a run, as a lost machine would, when a stage has written so many checkpoints; cuts the last one short."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        states = {int(path.parent.name.split("-")[1]): path for path in
                  folder.glob(f"checkpoints/{stage}-*/checkpoint-*/trainer_state.json")}
        with suppress(OSError, ValueError):  # the run writes and removes them meanwhile
            last = states[max(states, default=0)] if states else folder / "none"
            if json.loads(last.read_text())["epoch"] >= checkpoints:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                last.unlink()  # a kill in the middle of saving: the last file is missing
                return
        time.sleep(0.05)
    process.kill()
    pytest.fail(f"нет контрольных точек {stage}: {finish(process).stderr[-2000:]}")


def test_killed_run_goes_on_and_ends_alike(notebook, smoke, tmp_path):
    """Killed in the first stage and again in the second: each start skips what is done, and the result is that of a whole run."""
    for stage in ("pretrain", "sft"):
        process = start_sections(notebook, None, tmp_path, OMP_NUM_THREADS=2)
        kill_after(process, tmp_path, stage, 2)
    run = finish(start_sections(notebook, None, tmp_path, OMP_NUM_THREADS=2))
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.count("Продолжаю с checkpoint-") >= 2
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for part, name in (("pretrain", "test_bpc"), ("pretrain", "val_bpc"), ("sft", "eval_loss_after")):
        assert metrics[part][name] == pytest.approx(smoke["metrics"][part][name], rel=0.02), name
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_leaves_no_checkpoints_to_go_on_from(smoke):
    """So that the next run trains anew; the models themselves stay."""
    assert not (smoke["folder"] / "checkpoints").exists()
    assert all((smoke["folder"] / stage / "model.safetensors").exists() for stage in ("pretrain", "sft"))


def failing_trainer(nb, folder, forward, **arguments):
    """A Trainer whose model does `forward` in place of computing."""
    torch = nb["torch"]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, input_ids, labels=None):
            return {"loss": forward(self.weight)}
    rows = nb["Dataset"].from_list([{"input_ids": [1, 2], "labels": [1, 2]}] * 32)
    options = dict(output_dir=str(folder), per_device_train_batch_size=8, report_to="none", use_cpu=True, save_strategy="no", disable_tqdm=True)
    return nb["Trainer"](model=Model(), args=nb["TrainingArguments"](**options | arguments), train_dataset=rows, callbacks=[nb["StopOnNonFinite"]()])


def test_out_of_memory_names_the_knob(nb, tmp_path):
    """What a card's allocator says; another error is left as it is."""
    torch = nb["torch"]

    def card(weight):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def shapes(weight):
        return torch.zeros(2, 3) @ torch.zeros(2, 3)
    with pytest.raises(MemoryError, match="DEVICE_BATCH=4"):
        nb["resume"](failing_trainer(nb, tmp_path, card))
    with pytest.raises(RuntimeError, match="shapes"):
        nb["resume"](failing_trainer(nb, tmp_path, shapes))


def test_non_finite_loss_stops_the_run_at_its_step(nb, tmp_path):
    losses = iter([1.0, 1.0, float("nan"), 1.0])
    with pytest.raises(FloatingPointError, match="3"):
        nb["resume"](failing_trainer(nb, tmp_path, lambda weight: weight.sum() * next(losses), logging_steps=1, logging_nan_inf_filter=False))
