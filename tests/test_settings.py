"""Section 0: settings, the card, the disk; each fault is one sentence that names the setting.

What can go wrong, and where it is provoked:
  a wrong setting ........................ test_a_wrong_setting_is_named, test_a_folder_that_is_none_is_named
  no card, an old driver, a small card ... test_a_wrong_setting_is_named, test_a_card_that_fails_a_product_says_what_to_do
  little disk, another folder ............ test_little_disk_is_said, test_another_working_folder_is_refused
  out of memory, a loss that is no number  test_training.py: test_out_of_memory_becomes_advice, test_a_loss_that_is_no_number_stops_at_its_step
  a killed training ...................... test_training.py: test_a_killed_training_ends_alike
  a broken server, archive or own text ... test_corpus.py
  the hub, rows and models of others ..... test_hub.py
"""

from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SETTINGS, run_forked


def last_line(run) -> str:
    assert run.returncode == 1, run.stdout
    return run.stdout.strip().splitlines()[-1]


def test_full_profile_has_the_sizes_of_the_brief(configure):
    expected = {"context_length": 512, "vocab_size": 3000, "hidden_size": 1024, "batch_size": 64, "plain_epochs": 3}
    expected |= {
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "artifacts_dir": Path("artifacts"),
    }
    expected |= {"sft_model": "Qwen/Qwen2.5-0.5B", "sft_dataset": "d0rj/alpaca-cleaned-ru"}
    cfg = vars(configure(True))
    assert cfg.items() >= expected.items() and "0398a127fecf9b0a113ded163658f9c112c83ec5" in cfg["corpus"]


@pytest.mark.parametrize(
    "given, cuda, expected",
    [
        ({}, True, {"profile": "full", "recipe": "distilled", "seed": 42, "stages": "all", "batch_size": 64}),
        ({}, False, {"profile": "smoke", "batch_size": 8, "artifacts_dir": Path("artifacts/smoke"), "corpus": "data/sample"}),
        ({"PROFILE": "smoke"}, True, {"profile": "smoke", "sft_model": "artifacts/smoke/pretrain"}),
        ({"ARTIFACTS_DIR": "out"}, False, {"artifacts_dir": Path("out"), "sft_model": "out/pretrain"}),
        ({"DATA_DIR": "d", "SFT_MODEL": "gpt", "CORPUS": "x.zip"}, True, {"data_dir": Path("d"), "sft_model": "gpt", "corpus": "x.zip"}),
        ({"EPOCHS": "5"}, False, {"plain_epochs": 5, "muon_epochs": 5, "distilled_epochs": 5, "sft_epochs": 4}),
        (dict.fromkeys(SETTINGS, "auto"), True, {"seed": 42, "recipe": "distilled", "stages": "all", "data_dir": Path("data")}),
        ({"EPOCHS": "auto"}, True, {"plain_epochs": 3, "muon_epochs": 4, "distilled_epochs": 9, "sft_epochs": 2}),
        ({"SEED": "0", "DEVICE_BATCH": "99"}, True, {"seed": 0, "device_batch": 99}),
        ({"SEED": "999999999", "DEVICE_BATCH": "1", "EPOCHS": "999"}, True, {"seed": 999_999_999, "device_batch": 1, "plain_epochs": 999}),
        ({"RECIPE": "plain", "STAGES": "sft", "SFT_DATASET": "a"}, False, {"recipe": "plain", "stages": "sft", "sft_dataset": "a"}),
    ],
)  # fmt: skip
def test_settings_reach_the_configuration(nb, configure, given, cuda, expected):
    assert {*nb["SETTINGS"]} == {*SETTINGS}
    assert vars(configure(cuda, **given)).items() >= expected.items()


@pytest.mark.parametrize(
    "given, cuda",
    [
        ({"EPOCHS": "0"}, True), ({"EPOCHS": "2.5"}, True), ({"EPOCHS": "1000"}, True), ({"EPOCHS": "-1"}, True),
        ({"DEVICE_BATCH": "0"}, True), ({"DEVICE_BATCH": "100"}, True), ({"SEED": "-1"}, True), ({"SEED": "x"}, True),
        ({"SEED": "1234567890"}, True), ({"RECIPE": "adamw"}, True), ({"STAGES": "pretrain"}, True), ({"PROFILE": "Full"}, True),
        ({"PROFILE": "full"}, False),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named(configure, given, cuda):
    [(name, value)] = given.items()
    with pytest.raises(ValueError, match=rf"^{name}={value}: нужн.*\.$"):
        configure(cuda, **given)


@pytest.mark.parametrize("written, recipe", [("auto", "muon"), ("plain", "plain")])
def test_the_cell_goes_before_the_environment(notebook, nb, tmp_path, written, recipe):
    """As papermill would write it, between the cell of parameters and the others."""
    short = SimpleNamespace(cells=[cell for cell in notebook.cells if "open_rows(cfg" not in cell.source])
    then = "print('@', cfg.recipe)"
    run = run_forked(short, nb, [0], tmp_path / "out", script=f"RECIPE = {written!r}", then=then, RECIPE="muon")
    assert run.stdout.splitlines()[-1] == f"@ {recipe}"


@pytest.mark.parametrize(
    "batch, at_most, processes, rows",
    [
        (64, 64, 1, 64),
        (64, 63, 1, 32),
        (64, 99, 4, 16),
        (64, 8, 2, 8),
        (48, 20, 2, 12),
        (48, 11, 2, 8),
        (7, 6, 1, 1),
        (64, 1, 1, 1),
    ],
)
def test_rows_at_once_divide_the_share_of_a_process(nb, batch, at_most, processes, rows):
    assert nb["rows_at_once"](batch, at_most, processes) == rows


def test_a_batch_that_does_not_divide_is_refused(notebook, nb, tmp_path):
    """As three processes would, in the state that accelerate keeps."""
    code = "PartialState(cpu=True)._shared_state['num_processes'] = 3"
    line = last_line(run_forked(notebook, nb, [0], tmp_path / "out", script=code))
    assert line == "ValueError: Батч 8 не делится на процессы: их 3."


CARD = """
torch.cuda.is_available = lambda: True
torch.cuda.is_bf16_supported = lambda including_emulation=True: {bf16} or including_emulation
torch.cuda.get_device_capability = lambda *args: (7, 5)
torch.cuda.get_device_name = lambda *args: "Card"
torch.cuda.mem_get_info = lambda *args: ({free} * 2**30, 10**12)
PartialState = lambda **options: SimpleNamespace(is_main_process=True, num_processes={processes}, main_process_first=lambda: open("/dev/null"))
ones = torch.ones
torch.ones = lambda *shape, device=None: ones(*shape)
"""
SEEN = "\nprint('@', cfg.precision, cfg.blocks_at_once, cfg.dialogues_at_once, metrics['device'])"


@pytest.mark.parametrize(
    "free, bf16, processes, settings, expected",
    [
        (139, True, 1, {}, "bf16 64 64"), (79, True, 1, {}, "bf16 64 32"), (39, True, 1, {}, "bf16 64 16"), (22, True, 1, {}, "bf16 32 4"),
        (14.5, False, 1, {}, "fp16 8 1"), (3, False, 1, {}, "fp16 1 1"), (79, True, 4, {}, "bf16 16 16"),
        (79, True, 1, {"DEVICE_BATCH": 20}, "bf16 16 16"), (69.9, True, 1, {}, "bf16 64 16"), (70, True, 1, {}, "bf16 64 32"),
    ],
)  # fmt: skip
def test_precision_and_rows_follow_the_card(notebook, nb, tmp_path, free, bf16, processes, settings, expected):
    """The part of section 0 that looks at the card, in full profile, on a card made up by hand."""
    code = CARD.format(free=free, bf16=bf16, processes=processes)
    short = SimpleNamespace(cells=[cell for cell in notebook.cells if "open_rows(cfg" not in cell.source])
    run = run_forked(short, nb, [0], tmp_path / "out", script=code, then=SEEN, **{"PROFILE": "full"} | settings)
    assert f"@ {expected} Card" in run.stdout, run.stdout[-600:]


OTHER = """
def gather_object(cards):
    return [*cards, SimpleNamespace(precision={precision!r}, free_gib={free}, compile=False)]
"""


@pytest.mark.parametrize(
    "free, precision, expected",
    [(22, "bf16", "bf16 32 4"), (79.5, "bf16", "bf16 64 32"), (139, "fp16", "fp16 64 64"), (200, "bf16", "bf16 64 64")],
)
def test_the_least_of_the_cards_decides_for_all(notebook, nb, tmp_path, free, precision, expected):
    """Beside a card of 139 GiB stands another process's, as `gather_object` would tell."""
    code = CARD.format(free=139, bf16=True, processes=1) + OTHER.format(free=free, precision=precision)
    short = SimpleNamespace(cells=[cell for cell in notebook.cells if "open_rows(cfg" not in cell.source])
    then = SEEN + "\nprint('compile', cfg.compile)"
    run = run_forked(short, nb, [0], tmp_path / "out", script=code, then=then, PROFILE="full")
    assert f"@ {expected} Card" in run.stdout and "compile False" in run.stdout, run.stdout[-600:]
