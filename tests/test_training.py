"""Sections 7 and 8: what reached the trainers of the smoke run, and small trainings of their own, compared to sums by hand and to torch."""

import copy
import math
import re
import shutil
from types import SimpleNamespace

import pytest
from conftest import run_forked

RECIPES = ("plain", "muon", "distilled")


# The trainings of the smoke run, as they were when they ran


@pytest.fixture(scope="module")
def trainings(smoke) -> dict[str, dict]:
    return dict(zip((*RECIPES, "sft"), smoke["trainings"], strict=True))


COMMON = {
    "seed": 42, "data_seed": None, "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8, "gradient_accumulation_steps": 1,
    "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "load_best_model_at_end": True, "greater_is_better": False,
    "bf16": False, "fp16": False, "max_grad_norm": 1.0, "lr_scheduler_type": "linear", "logging_steps": 10, "logging_nan_inf_filter": False,
    "report_to": [], "adam_beta1": 0.9, "dataloader_drop_last": False, "label_smoothing_factor": 0.0, "gradient_checkpointing": False,
    "average_tokens_across_devices": True, "torch_compile": False, "ddp_find_unused_parameters": False,
}  # fmt: skip
FIRST = {"metric_for_best_model": "bpc", "warmup_steps": 0.05, "train_sampling_strategy": "random"}
ARGUMENTS = {
    "plain": FIRST | {"num_train_epochs": 2, "learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.95},
    "muon": FIRST | {"num_train_epochs": 4},
    "distilled": FIRST | {"num_train_epochs": 6},
    "sft": {
        "num_train_epochs": 4, "learning_rate": 1e-3, "metric_for_best_model": "loss", "warmup_steps": 0.03, "max_length": 384,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "group_by_length", "eval_on_start": True, "packing": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", [*RECIPES, "sft"])
def test_the_settings_reach_the_trainer(trainings, name):
    training = trainings[name]
    expected = COMMON | ARGUMENTS[name]
    assert {key: training["arguments"][key] for key in expected} == expected
    assert training["class"] == {"distilled": "DistillationTrainer", "sft": "SFTTrainer"}.get(name, "Trainer")
    assert (
        training["dtypes"] == ["torch.float32"] and training["schedule"] == "_get_linear_schedule_with_warmup_lr_lambda"
    )
    epochs, rows = training["arguments"]["num_train_epochs"], training["dataset"][0]
    assert training["steps"] == epochs * math.ceil(rows / 8) and len(training["rows"]) == epochs
    assert all(len({*seen}) == len(seen) == rows for seen in training["rows"])  # every row once an epoch
    assert training["rows"][0] != training["rows"][1]


@pytest.mark.parametrize("name", RECIPES)
def test_each_weight_has_its_optimizer_rate_and_decay(trainings, name):
    found = {weight: group for group in trainings[name]["groups"] for weight in group["names"]}
    assert len(found) == sum(len(group["names"]) for group in trainings[name]["groups"]) == 2 + 2 * 9
    for weight, group in found.items():
        assert group["betas"] == [0.9, 0.95] and group["eps"] == 1e-8
        assert group["weight_decay"] == (0.0 if "norm" in weight else 0.1 if name == "plain" else 0.2)
        matrix = "proj" in weight
        assert group["initial_lr"] == (1e-3 if name == "plain" else 0.03 if matrix else 3e-3)
        assert group.get("muon", False) == (matrix and name != "plain")
    assert (trainings[name]["optimizer"] == "MuonAdamW") == (name != "plain")
    rates = [row["learning_rate"] for row in trainings[name]["log"] if "loss" in row]
    assert rates == sorted(rates, reverse=True) and rates[0] > 10 * rates[-1] or len(rates) < 4


def test_dropout_is_on_in_training_and_off_in_evaluation(trainings):
    for name, training in trainings.items():
        share = sum(training["dropped"]["train"]) / len(training["dropped"]["train"])
        assert share == pytest.approx(0.05 if name in ("muon", "distilled") else 0, abs=0.003), name
        assert max(training["dropped"]["eval"]) < 1e-3


def test_all_three_begin_alike_and_the_teacher_is_the_best_second(nb, smoke, trainings):
    assert trainings["plain"]["start"] == trainings["muon"]["start"] == trainings["distilled"]["start"]
    assert trainings["plain"]["rows"][0] == trainings["muon"]["rows"][0]
    teacher, share = trainings["distilled"]["teacher"], trainings["distilled"]["share"]
    [folder] = (smoke["folder"] / "runs").glob("muon-*")
    weights = [weight.double().abs().sum().item() for weight in nb["load_run"](folder).parameters()]
    assert share == 0.7 and teacher == {"training": False, "gradients": 0, "dtype": "torch.float32", "weights": pytest.approx(weights)}


def test_models_that_were_trained_are_freed(trainings):
    """When a training begins no earlier model is left, as a global, in a trainer or in Jupyter's outputs, but the one section 7 shows."""
    spare = {name: training["alive"] for name, training in trainings.items()}
    assert spare["plain"] == spare["sft"] == 0 and max(spare.values()) <= 1


# Small trainings


@pytest.fixture(scope="module")
def lesson(nb, smoke_cfg, tokenizer, sample_texts):
    """A configuration of a tiny model, and what `pretrain` needs beside it."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "context_length": 48, "batch_size": 4, "blocks_at_once": 2}
    cfg = SimpleNamespace(**vars(smoke_cfg) | sizes | {"num_attention_heads": 2, "num_key_value_heads": 1})
    texts = sample_texts[0][:2500], sample_texts[1][:700]
    blocks = [nb["pack_texts"]([text], tokenizer, 48) for text in texts]
    data = {"train_dataset": blocks[0], "eval_dataset": blocks[1], "processing_class": tokenizer}
    return cfg, data | nb["score_by_bits"](tokenizer, len(texts[1])), texts


@pytest.fixture
def climb(nb, lesson, tokenizer, tmp_path):
    """climb(recipe, folder, …) trains a tiny model by one of the three recipes for three epochs; its folder."""

    def train(recipe: str, folder="out", epochs=3, data=None, **changes):
        cfg = SimpleNamespace(
            **vars(lesson[0]) | {"artifacts_dir": tmp_path / folder, "precision": changes.pop("precision", "fp32")}
        )
        handed, settings = {}, {"num_train_epochs": epochs, "learning_rate": 3e-3, "recipe": recipe} | changes
        nb["transformers"].set_seed(3)
        model = nb["build_model"](cfg, tokenizer)
        if recipe != "plain":
            nb["add_dropout"](model, 0.1)
            handed["optimizers"] = nb["muon_optimizer"](model, 0.02, 3e-3, 0.3), None
        if recipe == "distilled":
            nb["torch"].manual_seed(8)
            handed |= {
                "trainer_class": nb["DistillationTrainer"],
                "teacher": nb["build_model"](cfg, tokenizer).eval(),
                "share": 0.5,
            }
        return nb["pretrain"](recipe, model, settings, cfg, data or lesson[1], **handed)

    return train


def weights_of(nb, folder):
    return nb["load_run"](folder).state_dict()


def same(nb, first: dict, second: dict) -> bool:
    return all(nb["torch"].equal(weight, second[name]) for name, weight in first.items())


@pytest.mark.parametrize("recipe", ["plain", "distilled"])
def test_a_killed_training_ends_alike(nb, climb, monkeypatch, capsys, recipe):
    """Killed after the second of three epochs; a later checkpoint is half-written; the same weights and scores as of a whole training."""
    whole = climb(recipe, "whole")

    def die(self, args, state, control, **kwargs):
        if state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(nb["ProgressCallback"], "on_save", die, raising=False)
        climb(recipe, "killed")
    [folder] = (whole.parents[2] / "killed" / "runs").iterdir()
    steps = sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))
    assert len(steps) == 2 and not (folder / "log.json").exists()
    half = shutil.copytree(folder / f"checkpoint-{steps[0]}", folder / "checkpoint-1000")
    (half / "trainer_state.json").unlink()
    capsys.readouterr()
    assert climb(recipe, "killed") == folder and f"Продолжаю с checkpoint-{steps[1]}\n" in capsys.readouterr().out
    assert same(nb, weights_of(nb, whole), weights_of(nb, folder))
    logs = [nb["read_log"](path) for path in (whole, folder)]
    assert all(
        nb["logged"](logs[0], key) == nb["logged"](logs[1], key) for key in ("eval_bpc", "samples", "learning_rate")
    )
    assert len(nb["logged"](logs[1], "seconds")) == 3 and {path.name for path in folder.iterdir()} == {
        path.name for path in whole.iterdir()
    }


def test_a_finished_training_is_not_repeated(nb, climb, capsys):
    folder = climb("plain", epochs=1)
    assert not [*folder.glob("checkpoint-*")] and not [*folder.glob("*.bin")][1:]
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    capsys.readouterr()
    assert climb("plain", epochs=1) == folder and capsys.readouterr().out.count("уже закончено") == 1
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert climb("plain", epochs=1, weight_decay=0.5) != folder


def test_the_best_epoch_is_kept(nb, climb, lesson, monkeypatch):
    """Of four epochs that are said to score 3, 1, 2 and 2.5 the second one stays."""
    scores, saved = iter([3.0, 1.0, 2.0, 2.5]), []
    monkeypatch.setattr(nb["ProgressCallback"], "on_save", lambda self, args, state, control, model, **rest: saved.append(
        copy.deepcopy(model.state_dict())), raising=False)  # fmt: skip
    folder = climb("plain", epochs=4, data=lesson[1] | {"compute_metrics": lambda prediction: {"bpc": next(scores)}})
    kept = weights_of(nb, folder)
    assert [same(nb, weights, kept) for weights in saved] == [False, True, False, False]


def test_logged_scores_are_those_of_the_weights(nb, climb, lesson, tokenizer, capsys):
    """Bits and the ten continuations after each epoch; the last epoch is the best here, and its line is printed."""
    folder = climb("muon", epochs=3)
    log, model = nb["read_log"](folder), nb["load_run"](folder)
    bits = nb["logged"](log, "eval_bpc")
    assert bits[-1] == min(bits) == pytest.approx(nb["bits_per_char"](model, tokenizer, [lesson[2][1]], 48), rel=1e-5)
    written = nb["generate"](model, tokenizer, nb["TEST_PROMPTS"], 40, 42)
    assert nb["logged"](log, "samples")[-1] == written and len(written) == 10
    line = f"Эпоха 3, {bits[-1]:.3f} бита на символ. {nb['TEST_PROMPTS'][6]}{written[6]}".replace("\n", " ")
    assert line in capsys.readouterr().out
    decays = [(row["weights"], row["weight_decay"]) for row in log if "weight_decay" in row]
    norms = sum(weight.numel() for weight in model.parameters() if weight.ndim == 1)
    assert decays[-1] == (norms, 0.0) and sum(count for count, _ in decays) == model.num_parameters()
    assert {decay for _, decay in decays[:-1]} == {0.3}


def test_bf16_training_learns_and_leaves_fp32_weights(nb, climb, lesson, tokenizer):
    folder = climb("distilled", precision="bf16", use_cpu=True)
    arguments = nb["torch"].load(folder / "training_args.bin", weights_only=False)
    bits = nb["logged"](nb["read_log"](folder), "eval_bpc")
    exact = nb["bits_per_char"](nb["load_run"](folder), tokenizer, [lesson[2][1]], 48)
    assert (arguments.bf16, arguments.fp16) == (True, False) and bits[-1] < bits[0] - 0.05
    assert bits[-1] != exact == pytest.approx(bits[-1], rel=5e-3)


@pytest.mark.parametrize(
    "precision, batch, at_once, processes, expected",
    [
        ("bf16", 64, 16, 1, (16, 4, True, False)),
        ("fp16", 64, 8, 2, (8, 4, False, True)),
        ("fp32", 48, 48, 1, (48, 1, False, False)),
    ],
)
def test_rows_times_accumulation_times_processes_is_the_batch(
    nb, monkeypatch, tmp_path, precision, batch, at_once, processes, expected
):
    monkeypatch.setitem(nb, "PartialState", lambda: SimpleNamespace(num_processes=processes))
    cfg = SimpleNamespace(precision=precision, seed=5)
    arguments = nb["training_arguments"](tmp_path, cfg, batch, at_once, seed=6, learning_rate=0.5)
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "fp16")
    assert tuple(arguments[key] for key in keys) == expected and (arguments["seed"], arguments["learning_rate"]) == (
        6,
        0.5,
    )


# Folders


@pytest.mark.parametrize(
    "finished, stages, left",
    [(True, "all", set()), (True, "sft", {"plain-1", "muon-2"}), (False, "all", {"plain-1", "muon-2", "sft-3"}),
     (False, "sft", {"plain-1", "muon-2", "sft-3"})],
)  # fmt: skip
def test_the_next_run_trains_what_it_should(nb, tmp_path, finished, stages, left):
    for name in ("plain-1", "muon-2", "sft-3"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.json").touch()
    if finished:
        (tmp_path / "finished").touch()
    nb["forget_runs"](tmp_path, stages)
    assert {path.name for path in tmp_path.iterdir()} == left
    nb["forget_runs"](tmp_path / "none", stages)


def test_a_folder_is_named_by_settings_and_data(nb, tmp_path):
    names = [
        nb["run_folder"]("muon", {"lr": lr, "data": nb["digest"](texts)}, tmp_path).name
        for lr in (0.1, 0.2) for texts in (["ab", "c"], ["a", "bc"], ["abc"], ["c", "ab"])
    ]  # fmt: skip
    assert len({*names}) == 8 and all(name.startswith("muon-") for name in names)
    again = nb["run_folder"]("muon", {"data": nb["digest"](iter(["ab", "c"])), "lr": 0.1}, tmp_path)
    assert again == tmp_path / names[0]


NAMES = """
def pretrain(name, model, settings, cfg, data, **handed):
    print("@", run_folder(name, settings, cfg.artifacts_dir / "runs").name)
    return next(Path({runs!r}).glob(name + "-*"))
"""
OTHER = "SIZES |= {'sft_epochs': (9, 9), 'sft_learning_rate': (1, 1), 'sft_max_length': (99, 99), 'max_new_tokens': (9, 9)}\n"


def test_settings_of_the_second_stage_leave_the_first_alone(notebook, nb, smoke, tmp_path):
    """Other settings of stage two and of the machine: the same folders as in the smoke run; another seed or size: none of them."""
    runs = {path.name for path in (smoke["folder"] / "runs").glob("*-*") if not path.name.startswith("sft")}
    script = NAMES.format(runs=str(smoke["folder"] / "runs"))
    settings = {"SFT_DATASET": "data/sample/instructions.jsonl", "DEVICE_BATCH": 2, "STAGES": "sft", "RECIPE": "muon"}
    alike = run_forked(notebook, nb, range(9), tmp_path / "a", script=script + OTHER, **settings)
    names = {line[2:] for line in alike.stdout.splitlines() if line.startswith("@ ")}
    assert alike.returncode == 0 and len(names) == 2 and names < runs
    sizes = "SIZES['intermediate_size'] = (9, 64)\n"
    other = run_forked(notebook, nb, range(9), tmp_path / "b", script=script + sizes, then="print('#', common['data'], *common)")
    names = {line[2:] for line in other.stdout.splitlines() if line.startswith("@ ")}
    assert other.returncode == 0 and len(names) == 3 and not names & runs
    later = re.compile("corpus|artifacts_dir|sft_.*|max_.*|.*_epochs")
    data, *common = next(line.split()[1:] for line in other.stdout.splitlines() if line.startswith("# "))
    assert data == nb["digest"]([*smoke["texts"]["train"].values(), *smoke["texts"]["validation"].values()])
    assert {*common} >= {size for size in nb["SIZES"] if not later.fullmatch(size)} | {"seed", "data"}


# Faults


class Failing:
    """A `Trainer` whose model does `forward` in place of computing."""

    def __new__(cls, nb, folder, forward, **options):
        torch = nb["torch"]

        class Model(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.ones(1))

            def forward(self, input_ids, labels=None):
                return {"loss": forward(self.weight)}

        rows = nb["Dataset"].from_list([{"input_ids": [1, 2], "labels": [1, 2]}] * 32)
        options = {
            "per_device_train_batch_size": 8,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        } | options
        arguments = nb["TrainingArguments"](str(folder), **options)
        return nb["Trainer"](Model(), arguments, train_dataset=rows, callbacks=[nb["ProgressCallback"]()])


def test_out_of_memory_becomes_advice(nb, tmp_path):
    """What a card's allocator says; another error is left as it is."""
    torch = nb["torch"]

    def full(weight):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match="при 4 строках.*DEVICE_BATCH.*если это 1, карта мала"):
        nb["train_to_end"](Failing(nb, tmp_path, full, per_device_train_batch_size=4))
    with pytest.raises(RuntimeError, match="shapes"):
        nb["train_to_end"](Failing(nb, tmp_path, lambda weight: torch.zeros(2, 3) @ torch.zeros(2, 3)))
    assert not (tmp_path / "log.json").exists()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_at_its_step(nb, tmp_path, wrong):
    losses = iter([1.0, 1.0, wrong, 1.0])
    options = nb["training_arguments"](tmp_path, SimpleNamespace(precision="fp32", seed=1), 8, 8)
    options = {"logging_steps": 1, "logging_nan_inf_filter": options["logging_nan_inf_filter"]}
    with pytest.raises(FloatingPointError, match=r"^Шаг 3: .*lr"):
        nb["train_to_end"](Failing(nb, tmp_path, lambda weight: weight.sum() * next(losses), **options))


def test_each_process_drops_its_own_on_a_card(nb, monkeypatch, tmp_path):
    """The card's generator alone is seeded by process: the order of rows comes from the CPU's and stays common."""
    seeds, torch = [], nb["torch"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    torch.manual_seed(77)
    monkeypatch.setattr("torch.cuda.manual_seed", seeds.append)
    monkeypatch.setattr("torch.cuda.manual_seed_all", seeds.append)
    for index in (0, 1):
        trainer = SimpleNamespace(args=SimpleNamespace(seed=42, process_index=index, output_dir=tmp_path), save_model=lambda folder: None,
                                  is_world_process_zero=lambda: False, train=lambda resume_from_checkpoint: None)  # fmt: skip
        nb["train_to_end"](trainer)
    assert seeds == [42, 43] and torch.initial_seed() == 77


def test_losses_are_drawn_as_they_were(nb):
    log = [{"loss": 10.0 - i, "step": 10 * i} for i in range(1, 8)] + [
        {"eval_loss": 4.5, "step": 35},
        {"eval_loss": 4.0, "step": 70},
    ]
    nb["plot_losses"]([{"weights": 1}, *log], "Заголовок")
    axes = nb["plt"].gca()
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    nb["plt"].close()
    assert lines == {
        "обучение": ([10, 20, 30, 40, 50, 60, 70], [9, 8, 7, 6, 5, 4, 3]),
        "валидация": ([35, 70], [4.5, 4.0]),
    }
    assert axes.get_title() == "Заголовок"


# Dropout, Muon, the teacher


def test_orthogonalize_takes_the_nearest_orthogonal_matrix(nb):
    torch = nb["torch"]
    torch.manual_seed(0)
    for shape in ((3, 32, 16), (2, 16, 32), (1, 8, 8)):
        matrices = torch.randn(shape) * 1e-4
        steps = nb["orthogonalize"](matrices)
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        values = torch.linalg.svdvals(steps)
        assert steps.shape == shape and 0.3 < values.min() and values.max() < 1.3
        assert (
            (steps * (left @ right)).sum((1, 2)) / steps.norm(dim=(1, 2)) / (left @ right).norm(dim=(1, 2)) > 0.95
        ).all()
    assert torch.equal(nb["orthogonalize"](torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def by_hand(torch, weight, gradients, lr, decay):
    """Muon in fp32, a matrix at a time: momentum 0.95, Nesterov, five Newton–Schulz steps, decoupled decay."""
    average = torch.zeros_like(weight)
    for gradient in gradients:
        average = 0.95 * average + 0.05 * gradient
        x = 0.05 * gradient + 0.95 * average
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        weight = weight * (1 - lr * decay) - lr * max(1, weight.shape[0] / weight.shape[1]) ** 0.5 * x
    return weight


def test_muon_and_adamw_take_the_steps_of_torch(nb):
    """Six steps with gradients of unequal size: by hand, and as torch's two optimizers, whose products are bf16; resumed half-way."""
    torch = nb["torch"]
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 24), (8, 24), (24, 8), (16, 16), (5,), (30, 8))]
    steps = [[torch.randn_like(weight) * (1 + i % 2) for weight in start] for i in range(6)]

    def build(values):
        weights = [torch.nn.Parameter(value.detach().clone()) for value in values]
        groups = [
            {"params": weights[:2], "lr": 0.02, "muon": True}, {"params": weights[2:3], "lr": 0.02, "muon": True},
            {"params": weights[3:4], "lr": 0.02, "muon": True, "weight_decay": 0.1}, {"params": weights[4:], "lr": 1e-3, "muon": False},
        ]  # fmt: skip
        return weights, nb["MuonAdamW"](groups, betas=(0.9, 0.95), weight_decay=0.3)

    def take(weights, optimizers, gradients):
        for weight, gradient in zip(weights, gradients):
            weight.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    ours, optimizer = build(start)
    theirs = [torch.nn.Parameter(value.clone()) for value in start]
    stock = [torch.optim.Muon(theirs[:3], lr=0.02, weight_decay=0.3), torch.optim.Muon(theirs[3:4], lr=0.02, weight_decay=0.1),
             torch.optim.AdamW(theirs[4:], lr=1e-3, weight_decay=0.3, betas=(0.9, 0.95))]  # fmt: skip
    for i, gradients in enumerate(steps):
        if i == 3:
            state, (ours, optimizer) = copy.deepcopy(optimizer.state_dict()), build(ours)
            optimizer.load_state_dict(state)
        take(ours, [optimizer], gradients)
        take(theirs, stock, gradients)
    for i, weight in enumerate(ours):
        distance = (weight - theirs[i]).norm() / (theirs[i] - start[i]).norm()
        assert distance < (0.012 if i < 4 else 1e-6)
        if i < 4:
            exact = by_hand(torch, start[i], [step[i] for step in steps], 0.02, 0.1 if i == 3 else 0.3)
            assert torch.allclose(weight, exact, atol=1e-5)


def test_the_recipe_trains_in_fp16_with_a_loss_scaler(nb, lesson, tokenizer):
    """What a card without bf16 does: fp16 autocast, a gradient scaler, some steps skipped at first."""
    torch, (cfg, data, _) = nb["torch"], lesson
    torch.manual_seed(1)
    model = nb["add_dropout"](nb["build_model"](cfg, tokenizer), 0.05)
    optimizer, scaler = nb["muon_optimizer"](model, 0.03, 3e-3, 0.2), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    batch, losses = data["train_dataset"].select(range(8)).with_format("torch")[:], []
    for _ in range(14):
        with torch.autocast("cpu", torch.float16):
            logits = model(batch["input_ids"]).logits
            loss = nb["mixed_loss"](logits, logits.detach(), batch["labels"], 0.1) / 300
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 0.3 and scaler.get_scale() < 2.0**20


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_loss_and_its_gradient_by_hand(nb, share, dtype):
    """Two rows, one of them padded: the next token gets 1 - share, the teacher's probabilities the rest; summed in fp32."""
    torch = nb["torch"]
    torch.manual_seed(0)
    logits, taught, labels = torch.randn(2, 6, 11), 3 * torch.randn(2, 6, 11), torch.randint(11, (2, 6))
    labels[0, 3:] = -100
    logits, taught = logits.to(getattr(torch, dtype)).requires_grad_(), taught.to(getattr(torch, dtype))
    expected, gradient = 0.0, torch.zeros(2, 6, 11)
    for row, i in ((row, i) for row in range(2) for i in range(5) if labels[row, i + 1] != -100):
        target = share * taught[row, i].float().softmax(-1)
        target[labels[row, i + 1]] += 1 - share
        expected -= (target * logits[row, i].float().log_softmax(-1)).sum().item()
        gradient[row, i] = logits[row, i].detach().float().softmax(-1) - target
    loss = nb["mixed_loss"](logits, taught, labels, share)
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)
    assert torch.allclose(logits.grad.float(), gradient, atol=1e-6 if dtype == "float32" else 4e-3)


@pytest.mark.parametrize("processes", [1, 2])
def test_the_student_learns_from_the_teachers_answer_to_its_batch(
    nb, lesson, tokenizer, tmp_path, processes, monkeypatch
):
    """Σ loss / tokens of the whole batch, times the processes whose mean is taken; evaluation knows no teacher."""
    torch, (cfg, data, _) = nb["torch"], lesson
    torch.manual_seed(2)
    student, teacher = (nb["build_model"](cfg, tokenizer) for _ in range(2))
    arguments = nb["TrainingArguments"](str(tmp_path), use_cpu=True)
    trainer = nb["DistillationTrainer"](student, arguments, teacher=teacher.eval(), share=0.7)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", processes)
    batch = data["train_dataset"].with_format("torch")[[7, 3]]
    loss = trainer.compute_loss(student.train(), batch, num_items_in_batch=torch.tensor(50))
    logits, taught = student(batch["input_ids"]).logits, teacher(batch["input_ids"]).logits
    expected = nb["mixed_loss"](logits, taught, batch["labels"], 0.7).item() * processes / 50
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(weight.grad is None for weight in teacher.parameters()) and all(
        w.grad is not None for w in student.parameters()
    )
    plain = trainer.compute_loss(student.eval(), batch).item()
    assert plain == pytest.approx(student(**batch).loss.item(), rel=1e-6)
