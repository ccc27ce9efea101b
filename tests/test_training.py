"""Section 7: training on a few blocks, compared with steps, losses and rates worked out by hand."""
import copy
import json
import math
import time
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import concatenate_datasets


@pytest.fixture(scope="module")
def cpu(nb):
    return nb["Hardware"]("CPU", False, "fp32", False, 8.0)


@pytest.fixture
def quick(nb, tmp_path):
    """Settings of a training of seconds; every number differs from its neighbours, so that swapped ones show."""
    return replace(nb["make_config"]("smoke", seed=1, artifacts_dir=str(tmp_path)), context_length=48, hidden_size=64, intermediate_size=96,
                   num_hidden_layers=1, epochs=2, batch_size=4, learning_rate=0.02, embedding_learning_rate=4e-3, weight_decay=0.3,
                   dropout=0.2, distillation=0.3)


@pytest.fixture(scope="module")
def texts(sample_texts) -> tuple[list[str], list[str]]:
    """(training texts, validation texts): 20 blocks and a few."""
    return [sample_texts[0][:1800]], [sample_texts[1][:500], "Да."]


@pytest.fixture
def train(nb, cpu, tokenizer, texts):
    """train(cfg, …) -> trainer of a model whose first weights depend on `init` alone."""
    def start(cfg, *, init=7, blocks=None, hardware=cpu, model=None, **options):
        train_blocks, validation = (nb["pack_texts"](part, tokenizer, cfg.context_length) for part in texts)
        blocks = blocks or train_blocks.select(range(20))
        return nb["pretrain"](model or fresh(nb, cfg, tokenizer, init), cfg, hardware, tokenizer, blocks, validation, sum(map(len, texts[1])),
                              **options)
    return start


def fresh(nb, cfg, tokenizer, seed: int = 7):
    nb["torch"].manual_seed(seed)
    return nb["build_model"](cfg, tokenizer)


@pytest.fixture
def lessons(nb, cpu, tokenizer, texts):
    """lessons(cfg, …): what an untrained teacher says of the blocks that `train` trains on."""
    def ask(cfg, blocks=None, hardware=cpu):
        blocks = blocks or nb["pack_texts"](texts[0], tokenizer, cfg.context_length).select(range(20))
        return nb["ask_teacher"](fresh(nb, cfg, tokenizer, 9), blocks, hardware, cfg.seed, 64)
    return ask


def same_weights(nb, first, second, **tolerance) -> bool:
    compare = nb["torch"].allclose if tolerance else nb["torch"].equal
    return all(compare(a, b, **tolerance) for a, b in zip(first.parameters(), second.parameters()))


# One training against the same steps by hand

@pytest.mark.parametrize("taught", [False, True], ids=["alone", "teacher"])
@pytest.mark.parametrize("at_once", [1, 4])
def test_training_takes_the_steps_written_by_hand(nb, quick, cpu, tokenizer, train, lessons, taught, at_once):
    """Equal blocks, so that their order is nothing: warmup and linear decay, clipping, the mixed loss per token, both optimizers."""
    torch, cfg = nb["torch"], replace(quick, dropout=0.0, epochs=5, device_batch=at_once)
    block = nb["pack_texts"](["Поезд ушел, а мы остались на пустом перроне."], tokenizer, cfg.context_length)
    blocks = concatenate_datasets([block] * 16)
    drawn = lessons(cfg, blocks) if taught else None
    trainer = train(cfg, blocks=blocks, taught=drawn[:1].expand(16, -1, -1) if taught else None)

    model, batch, losses = fresh(nb, cfg, tokenizer).train(), block.with_format("torch")[:], []
    optimizer = nb["make_optimizer"](model, cfg, cpu)
    rates, kept = [group["lr"] for group in optimizer.param_groups], batch["labels"][0, 1:] != -100
    for step in range(20):
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * (0 if step == 0 else (20 - step) / 19)
        log_probabilities = model(batch["input_ids"]).logits[0, :-1].log_softmax(-1)
        hard = log_probabilities.gather(-1, batch["input_ids"][0, 1:, None])[:, 0]
        loss = -hard[kept].mean()
        if taught:
            soft = sum(log_probabilities.gather(-1, drawn[0, :-1, i:i + 1].long())[:, 0] for i in range(64)) / 64
            loss = -(0.7 * hard + 0.3 * soft)[kept].mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert nb["history"](trainer, "loss") == pytest.approx([losses[0], sum(losses[1:10]) / 9, sum(losses[10:]) / 10], rel=1e-3)
    last = nb["transformers"].LlamaForCausalLM.from_pretrained(Path(trainer.args.output_dir) / "checkpoint-20")  # the trainer ends with the best epoch
    assert same_weights(nb, last, model, atol=2e-3) and not same_weights(nb, last, fresh(nb, cfg, tokenizer), atol=2e-2)


def test_rates_rise_shortly_and_fall_to_nothing(nb, quick, train):
    trainer = train(replace(quick, epochs=8))  # 40 steps, two of them warmup
    groups = trainer.optimizer.param_groups
    assert [group["initial_lr"] for group in groups] == [0.02, 4e-3, 4e-3] and [group["lr"] for group in groups] == [0.0] * 3
    assert nb["history"](trainer, "learning_rate") == pytest.approx([0.0] + [0.02 * (40 - step) / 38 for step in (9, 19, 29, 39)])
    assert trainer.state.global_step == 40 and len(nb["history"](trainer, "eval_loss")) == 8


def test_the_callbacks_are_attached(nb, quick, train, capsys):
    trainer = train(replace(quick, epochs=3), callbacks=[nb["PromptCallback"]()])
    assert [len(nb["history"](trainer, key)) for key in ("samples", "epoch_seconds", "eval_bpc")] == [3, 3, 3]
    lines = capsys.readouterr().out
    assert all(f"эпоха {epoch} из 3, шаг {5 * epoch} из 15" in lines for epoch in (1, 2, 3))


def test_a_loss_that_is_no_number_stops_the_training(nb, quick, train):
    with pytest.raises(FloatingPointError, match="learning_rate"):
        train(replace(quick, epochs=3, learning_rate=1e30))
    for loss, stops in ((math.inf, True), (-math.inf, True), (math.nan, True), (1e30, False)):
        state, logs = nb["transformers"].TrainerState(global_step=7), {"loss": loss}
        with pytest.raises(FloatingPointError, match="Шаг 7") if stops else nullcontext():
            nb["StopOnNonFinite"]().on_log(SimpleNamespace(output_dir="artifacts/checkpoints/pretrain-1"), state, None, logs)


def test_every_random_choice_follows_the_seed(nb, quick, train, tokenizer):
    """Equal first weights: another seed gives another order of blocks, and among equal blocks other dropout; the same seed repeats both."""
    block = nb["pack_texts"](["Поезд ушел, а мы остались на пустом перроне."], tokenizer, quick.context_length)
    equal = concatenate_datasets([block] * 16)

    def losses(seed, dropout, blocks=None):
        cfg = replace(quick, seed=seed, dropout=dropout, epochs=3)
        trainer = train(replace(cfg, artifacts_dir=cfg.artifacts_dir / str(time.perf_counter())), blocks=blocks)
        nb["torch"].rand(3)
        return nb["history"](trainer, "loss") + nb["history"](trainer, "eval_loss")
    assert losses(1, 0.0) == losses(1, 0.0) != losses(2, 0.0)
    assert losses(1, 0.4, equal) == losses(1, 0.4, equal) != losses(2, 0.4, equal)


# The best epoch, and going on from the last one

def test_the_best_epoch_on_validation_is_kept(nb, quick, train, texts, tokenizer):
    """So few blocks and such steps that later epochs are worse: the weights are those of the best, not of the last."""
    trainer = train(replace(quick, epochs=9, dropout=0.0, weight_decay=0.0))
    losses, bits = nb["history"](trainer, "eval_loss"), nb["history"](trainer, "eval_bpc")
    assert min(losses) < losses[-1] - 0.01 and losses.index(min(losses)) > 0
    nats, count = nb["block_nll"](trainer.model, tokenizer, nb["pack_texts"](texts[1], tokenizer, 48))
    assert nats / count == pytest.approx(min(losses), rel=1e-5)
    assert nb["bits_per_char"](trainer.model, tokenizer, texts[1], 48) == pytest.approx(min(bits), rel=1e-5)


def test_a_finished_stage_is_not_trained_again(nb, quick, train, capsys):
    """Checkpoints 5 and 10: the later is the last by its number, not by its name."""
    whole = train(quick)
    capsys.readouterr()
    again = train(quick, init=7)
    printed = capsys.readouterr().out
    assert "Продолжаю с checkpoint-10:" in printed and "эпоха" not in printed and same_weights(nb, whole.model, again.model)
    assert nb["history"](again, "eval_loss") == nb["history"](whole, "eval_loss") and again.state.global_step == 10


def test_a_cut_training_goes_on_from_the_last_whole_checkpoint(nb, quick, train, capsys):
    """Dropout, the order of the blocks and the state of both optimizers go on as if nothing had happened."""
    whole = train(quick, callbacks=[nb["PromptCallback"]()])
    (Path(whole.args.output_dir) / "checkpoint-10" / "trainer_state.json").unlink()
    capsys.readouterr()
    resumed = train(quick, callbacks=[nb["PromptCallback"]()])
    printed = capsys.readouterr().out
    assert "Продолжаю с checkpoint-5:" in printed and "эпоха 1 из" not in printed and "эпоха 2 из" in printed
    assert same_weights(nb, whole.model, resumed.model, atol=1e-5)
    for key in ("eval_loss", "samples"):
        assert nb["history"](resumed, key) == nb["history"](whole, key)


OTHER = {str: "x", int: 77, float: 0.77}


def test_the_folder_is_named_by_all_that_changes_the_result(nb, quick, tokenizer):
    """Every setting, but those that say where or how many at a time; the model's shape, its first weights, the data, the stage."""
    def folder(cfg=quick, stage="pretrain", model=fresh(nb, quick, tokenizer), tokens=(1, 2, 3)):
        return nb["checkpoint_folder"](stage, cfg, model, nb["Dataset"].from_dict({"input_ids": [[*tokens], [5]]}))
    settings = {field.name: replace(quick, **{field.name: OTHER.get(type(getattr(quick, field.name)), Path("elsewhere"))})
                for field in fields(quick)}
    free = {"device_batch", "data_dir", "artifacts_dir"}
    assert {name for name, cfg in settings.items() if folder(cfg).name == folder().name} == free
    zeroed, deeper = fresh(nb, quick, tokenizer), fresh(nb, replace(quick, num_hidden_layers=2), tokenizer)
    nb["torch"].nn.init.zeros_(zeroed.model.embed_tokens.weight)
    deeper.load_state_dict(fresh(nb, quick, tokenizer).state_dict(), strict=False)
    others = [folder(model=zeroed), folder(model=deeper), folder(tokens=(1, 2, 4)), folder(stage="teacher")]
    assert len({folder(), *others}) == 5 and folder() == folder(model=fresh(nb, quick, tokenizer))
    assert folder().parent == quick.artifacts_dir / "checkpoints" and folder().name.startswith("pretrain-")


def test_training_on_other_blocks_does_not_take_the_checkpoints(nb, quick, train, tokenizer, texts, capsys):
    train(quick)
    train(quick, blocks=nb["pack_texts"](texts[0], tokenizer, 48).select(range(1, 21)))
    assert "Продолжаю" not in capsys.readouterr().out


# Evaluation

@pytest.mark.parametrize("at_once", [1, 4])
def test_evaluation_counts_every_token_once(nb, quick, train, tokenizer, lessons, texts, at_once):
    """Dropout off, the teacher out of it, blocks of unequal length: per token and per character as the scores of section 6."""
    trainer = train(replace(quick, epochs=1, dropout=0.5, device_batch=at_once), taught=lessons(quick))
    scores = trainer.evaluate()
    model, nats, count = trainer.model.eval(), 0.0, 0
    for row in nb["pack_texts"](texts[1], tokenizer, 48)["input_ids"]:
        ids = [token for token in row if token != tokenizer.pad_token_id]
        log_probabilities = model(nb["torch"].tensor([ids])).logits[0].log_softmax(-1)
        kept = [(i, token) for i, token in enumerate(ids[1:]) if token != tokenizer.eos_token_id]
        nats, count = nats - sum(log_probabilities[i, token].item() for i, token in kept), count + len(kept)
    assert scores["eval_loss"] == pytest.approx(nats / count, rel=1e-5) == nb["history"](trainer, "eval_loss")[0]
    assert scores["eval_bpc"] == pytest.approx(nats / math.log(2) / sum(map(len, texts[1])), rel=1e-5)
    assert scores["eval_bpc"] == pytest.approx(nb["bits_per_char"](trainer.model, tokenizer, texts[1], 48), rel=1e-5)


# Callbacks

def test_prompts_are_continued_with_the_runs_seed(nb, quick, tokenizer):
    model, records = fresh(nb, quick, tokenizer), []
    for seed in (1, 1, 2):
        state = nb["transformers"].TrainerState(global_step=3, epoch=1.0)
        nb["PromptCallback"]().on_evaluate(SimpleNamespace(seed=seed), state, None, model=model, processing_class=tokenizer)
        records += state.log_history
    first, again, other = (record["samples"] for record in records)
    assert first == again == nb["generate"](model, tokenizer, nb["TEST_PROMPTS"], 50, seed=1) != other and len(first) == 10


def test_the_timer_counts_an_epoch_without_its_evaluation(nb, capsys):
    timer, state, args = nb["EpochTimer"](), nb["transformers"].TrainerState(max_steps=8), SimpleNamespace(num_train_epochs=2)
    for epoch, loss in ((1, 3.25), (2, 1.5)):
        timer.on_epoch_begin(args, state, None)
        time.sleep(0.1)
        state.epoch, state.global_step = float(epoch), 4 * epoch
        state.log_history.append({"loss": loss})
        timer.on_epoch_end(args, state, None)
        time.sleep(0.3)  # an evaluation
    seconds = [record["epoch_seconds"] for record in state.log_history if "epoch_seconds" in record]
    assert len(seconds) == 2 and all(0.1 <= s < 0.3 for s in seconds)
    lines = capsys.readouterr().out.splitlines()
    assert [all(part in line for part in parts) for line, parts in zip(lines, (
        ("эпоха 1 из 2", "шаг 4 из 8", "3.250"), ("эпоха 2 из 2", "шаг 8 из 8", "1.500")))] == [True, True]


def test_speed_by_hand(nb, quick, tokenizer, notebook, capsys):
    """1000 tokens an epoch, epochs of 2 and 3 seconds: 400 tokens a second; 6 N + 6 L d T operations a token."""
    [cell] = [cell.source for cell in notebook.cells if cell.source.startswith("train_s, ")]
    model, teacher = fresh(nb, quick, tokenizer), fresh(nb, replace(quick, num_hidden_layers=2), tokenizer)
    flops = 6 * model.num_parameters() + 6 * 1 * 64 * 48

    def trainer(model, *seconds):
        log = [{"loss": 1.0}, *({"epoch_seconds": each} for each in seconds)]
        return SimpleNamespace(state=SimpleNamespace(log_history=log), model=model)
    for card, mfu in (("NVIDIA H100 80GB HBM3", 400 * flops / 989e12), ("NVIDIA H200", 400 * flops / 989e12), ("NVIDIA Card of Tomorrow", None)):
        scope = nb | dict(cfg=quick, model=model, trainer=trainer(model, 2.0, 3.0), teachers=[trainer(teacher, 1.0, 0.5), trainer(teacher, 2.0)], metrics={},
                          filled={"train": 1000}, hardware=nb["Hardware"](card, True, "bf16", True, 80.0), scores=[1.5, 1.4], teacher_scores=[1.6, 1.7],
                          baselines={"test": {"unigram_bpc": 3.0}})
        exec(cell, scope)
        assert scope["metrics"]["pretrain"] == {
            "params": model.num_parameters(), "train_tokens": 1000, "epochs": 2, "batch_size": 4, "weight_decay": 0.3, "val_bpc": 1.4,
            "train_s": 5.0, "tokens_per_s": 400.0, "mfu": mfu and pytest.approx(mfu), "baselines": {"unigram_bpc": 3.0},
            "teacher": {"count": 2, "params": teacher.num_parameters(), "train_s": 3.5, "epochs": quick.teacher_epochs, "val_bpc": [1.6, 1.7]}}
        assert "токенов в секунду 400" in capsys.readouterr().out


def test_losses_are_drawn_as_they_were(nb):
    log = [{"loss": 10.0 - i, "step": 10 * i} for i in range(1, 8)] + [{"eval_loss": 4.5, "step": 35}, {"eval_loss": 4.0, "step": 70}]
    nb["plot_losses"](SimpleNamespace(state=SimpleNamespace(log_history=log)), "Заголовок")
    axes = nb["plt"].gca()
    lines = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}
    nb["plt"].close()
    assert lines == {"обучение": ([10, 20, 30, 40, 50, 60, 70], [9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0]), "валидация": ([35, 70], [4.5, 4.0])}
    assert axes.get_title() == "Заголовок" and axes.get_ylim()[0] < 3 and axes.get_ylim()[1] > 9


# Dropout and precision

def test_dropout_acts_on_attention_and_mlp_in_training_only(nb, quick, tokenizer, tmp_path):
    """Three tenths of both outputs are zero, the rest is scaled up; names, weights and config stay those of a plain Llama."""
    torch, cfg = nb["torch"], replace(quick, num_hidden_layers=2)
    model, plain = fresh(nb, cfg, tokenizer), fresh(nb, cfg, tokenizer)
    nb["add_dropout"](model, 0.3)
    ids, seen = torch.randint(4, len(tokenizer), (4, 48)), {}
    for i, layer in enumerate(model.model.layers):
        for name, module in (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
            module.register_forward_hook(lambda module, args, output, key=(i, name): seen.update(
                {key: (nb["torch"].nn.functional.linear(args[0], module.weight), output)}))  # (without dropout, with it)
    model.train()(ids)
    assert len(seen) == 4
    for before, after in seen.values():
        kept = after != 0
        assert 0.25 < 1 - kept.float().mean() < 0.35 and torch.allclose(after[kept], before[kept] / 0.7, atol=1e-5)
    assert torch.equal(model.eval()(ids).logits, plain.eval()(ids).logits) and model.state_dict().keys() == plain.state_dict().keys()
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(plain.config.to_json_string()) | {
        "architectures": ["LlamaForCausalLM"]}


def test_pretraining_puts_its_dropout_in(nb, quick, train, tokenizer):
    """The logged loss of a training that changes nothing tells whether dropout was there."""
    still = replace(quick, learning_rate=0.0, embedding_learning_rate=0.0, epochs=2)
    plain, dropped = (nb["history"](train(replace(still, dropout=dropout)), "loss")[0] for dropout in (0.0, 0.5))
    assert abs(plain - dropped) > 1e-4


def test_residual_is_bf16_only_where_training_computes_in_bf16(nb, quick, tokenizer):
    torch, model = nb["torch"], fresh(nb, quick, tokenizer)
    nb["narrow_residual"](model)
    embeddings, ids = model.get_input_embeddings(), torch.tensor([[5, 6]])
    with torch.autocast("cpu", torch.bfloat16):
        assert embeddings.train()(ids).dtype == torch.bfloat16
        assert embeddings.eval()(ids).dtype == torch.float32
    with torch.autocast("cpu", torch.float16):
        assert embeddings.train()(ids).dtype == torch.float32
    assert embeddings.train()(ids).dtype == torch.float32


def test_bf16_training_learns_and_leaves_no_autocast(nb, quick, train, tokenizer, lessons, texts):
    """On a CPU in bf16: the loss falls, the weights stay fp32, and scores afterwards are in fp32."""
    bf16 = nb["Hardware"]("CPU", False, "bf16", False, 8.0)
    trainer = train(replace(quick, epochs=6, dropout=0.0), hardware=bf16, taught=lessons(quick, hardware=bf16))
    losses = nb["history"](trainer, "eval_loss")
    assert min(losses) < losses[0] - 0.05 and trainer.model.dtype == nb["torch"].float32 and trainer.args.bf16 and not trainer.args.fp16
    plain = fresh(nb, quick, tokenizer)
    plain.load_state_dict(trainer.model.state_dict())
    scores = [nb["bits_per_char"](model, tokenizer, texts[1], 48) for model in (trainer.model, plain)]
    assert scores[0] == scores[1] != min(nb["history"](trainer, "eval_bpc"))  # that one was in bf16


def test_fp16_recipe_trains_with_a_loss_scaler(nb, quick, tokenizer, texts, tmp_path):
    """What a card without bf16 does: fp16 autocast, a gradient scaler, Newton–Schulz in fp32, no fused step."""
    torch, fp16 = nb["torch"], nb["Hardware"]("T4", True, "fp16", False, 15.0)
    arguments = nb["training_arguments"](quick, fp16, tmp_path, 4, 2)
    assert (arguments["fp16"], arguments["bf16"], arguments["use_cpu"]) == (True, False, False)
    model = fresh(nb, quick, tokenizer)
    nb["add_dropout"](model, 0.05)
    nb["narrow_residual"](model)
    optimizer, scaler = nb["make_optimizer"](model, quick, fp16), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    batch, losses, scales = nb["pack_texts"](texts[0], tokenizer, 48).select(range(8)).with_format("torch")[:], [], []
    for _ in range(12):
        with torch.autocast("cpu", torch.float16):
            loss = model(**batch).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
        scales.append(scaler.get_scale())
    assert all(map(math.isfinite, losses)) and losses[-1] < losses[0] - 1
    assert scales[-1] < 2.0**20  # the first scale overflowed: those steps were skipped, not taken


# The optimizer

def relative(nb, mine, other, start) -> float:
    return ((mine - other).norm() / (other - start).norm()).item()


def muon_adamw(nb, parameters, dtype):
    return nb["MuonAdamW"]([dict(params=parameters[:4], lr=0.02, weight_decay=0.3, muon=dtype),
                            dict(params=parameters[4:], lr=1e-3, weight_decay=0.1, muon=False)])


def random_parameters(nb, seed: int = 0) -> list:
    nb["torch"].manual_seed(seed)
    return [nb["torch"].nn.Parameter(nb["torch"].randn(shape)) for shape in ((8, 24), (8, 24), (24, 8), (16, 16), (5,), (8, 24))]


def give_gradients(nb, parameters, seed: int) -> None:
    nb["torch"].manual_seed(seed)
    for parameter in parameters:
        parameter.grad = nb["torch"].randn_like(parameter) * (1 + seed % 2)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muon_takes_the_steps_of_torch(nb, dtype):
    """Eight steps with gradients of unequal size: momentum, Nesterov, decay and scale are torch's; the products there are bf16."""
    torch = nb["torch"]
    start, ours, theirs = (random_parameters(nb) for _ in range(3))
    optimizers = [torch.optim.Muon(theirs[:4], lr=0.02, weight_decay=0.3), torch.optim.AdamW(theirs[4:], lr=1e-3, weight_decay=0.1)]
    mine = muon_adamw(nb, ours, getattr(torch, dtype))
    for step in range(8):
        give_gradients(nb, ours, step)
        give_gradients(nb, theirs, step)
        for optimizer in (mine, *optimizers):
            optimizer.step()
        mine.zero_grad()
    assert all(relative(nb, a, b, s) < 0.012 for a, b, s in zip(ours[:4], theirs[:4], start))
    assert all(torch.equal(a, b) for a, b in zip(ours[4:], theirs[4:]))


def test_muon_goes_on_from_its_saved_state(nb):
    whole = random_parameters(nb)
    optimizer = muon_adamw(nb, whole, nb["torch"].float32)
    for seed in (1, 2):
        give_gradients(nb, whole, seed)
        optimizer.step()
    cut = [nb["torch"].nn.Parameter(parameter.detach().clone()) for parameter in whole]
    resumed = muon_adamw(nb, cut, nb["torch"].float32)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for parameters, each in ((whole, optimizer), (cut, resumed)):
        give_gradients(nb, parameters, 5)
        each.step()
    assert all(nb["torch"].equal(a, b) for a, b in zip(whole, cut))


def test_orthogonalize_brings_singular_values_near_one_in_every_precision(nb):
    torch = nb["torch"]
    torch.manual_seed(0)
    for shape in ((3, 32, 16), (2, 16, 32)):
        matrices = torch.randn(shape) * 1e-4
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            steps = nb["orthogonalize"](matrices, dtype).float()
            values = torch.linalg.svdvals(steps)
            assert steps.shape == shape and 0.5 < values.min() and values.max() < 1.4
            left, _, right = torch.linalg.svd(matrices, full_matrices=False)
            assert ((steps * (left @ right)).sum((1, 2)) / steps.norm(dim=(1, 2)) / 4 > 0.95).all()  # the nearest orthogonal matrix


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_each_weight_gets_its_optimizer_rate_and_decay(nb, quick, cpu, tokenizer, kind):
    """Matrices of the layers at `learning_rate` by the optimizer asked for, embeddings and norms by AdamW, norms without decay."""
    torch, cfg = nb["torch"], replace(quick, optimizer=kind)
    ours, theirs, start = (fresh(nb, cfg, tokenizer) for _ in range(3))
    named = dict(theirs.named_parameters())
    norms = [p for name, p in named.items() if "norm" in name]
    matrices = [p for name, p in named.items() if "proj" in name]
    assert len(norms) + len(matrices) + 1 == len(named)
    adamw = [dict(params=[named["model.embed_tokens.weight"]], lr=4e-3, weight_decay=0.3), dict(params=norms, lr=4e-3, weight_decay=0.0)]
    if kind == "adamw":
        adamw.append(dict(params=matrices, lr=0.02, weight_decay=0.3))
    optimizers = [torch.optim.AdamW(adamw, betas=(0.9, 0.95))] + ([torch.optim.Muon(matrices, lr=0.02, weight_decay=0.3)] if kind == "muon" else [])
    mine = nb["make_optimizer"](ours, cfg, cpu)
    for step in range(4):
        give_gradients(nb, ours.parameters(), step)
        give_gradients(nb, theirs.parameters(), step)
        for optimizer in (mine, *optimizers):
            optimizer.step()
    distances = {name: relative(nb, a, b, s) for (name, a), b, s in zip(ours.named_parameters(), theirs.parameters(), start.parameters())}
    assert {name for name, distance in distances.items() if distance > (0.012 if "proj" in name and kind == "muon" else 1e-5)} == set()


# The teacher

@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mixed_loss_by_hand(nb, share):
    """Two rows, one of them padded: three drawn tokens, perhaps equal, get `share` evenly, the true token the rest."""
    torch = nb["torch"]
    torch.manual_seed(0)
    logits, labels, taught = torch.randn(2, 6, 11), torch.randint(11, (2, 6)), torch.randint(11, (2, 6, 3))
    labels[0, 3:] = -100
    expected = 0.0
    for row in range(2):
        for i in range(5):
            if labels[row, i + 1] != -100:
                student, target = logits[row, i].log_softmax(-1), torch.zeros(11)
                for token in taught[row, i]:
                    target[token] += share / 3
                target[labels[row, i + 1]] += 1 - share
                expected -= (target * student).sum().item()
    found = nb["mixed_loss"](logits, labels, taught.short(), share)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("precision, dtype", [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_the_teacher_is_asked_once_without_dropout_in_the_precision_of_the_card(nb, quick, tokenizer, texts, precision, dtype):
    """More blocks than it answers at a time, in their order: tokens as frequent as its probabilities say, the same when asked again."""
    torch, teacher = nb["torch"], fresh(nb, quick, tokenizer, 9)
    nb["add_dropout"](teacher.train(), 0.5)
    teacher.model.norm.weight.data *= 20  # surer than an untrained model is
    blocks = concatenate_datasets([nb["pack_texts"](texts[0], tokenizer, 48)] * 3)
    hardware = nb["Hardware"]("", False, precision, False, 8.0)
    tokens, again, other = (nb["ask_teacher"](teacher, blocks, hardware, seed, 400) for seed in (1, 1, 2))
    assert torch.equal(tokens, again) and not torch.equal(tokens, other)
    assert teacher.dtype == getattr(torch, dtype) and len(blocks) > 32
    with torch.no_grad():
        chances = teacher(torch.tensor(blocks["input_ids"][:])).logits.float().softmax(-1)
    assert tokens.shape == (len(blocks), 48, 400) and tokens.dtype == torch.int16
    found = torch.zeros_like(chances).scatter_add_(-1, tokens.long(), torch.full(tokens.shape, 1 / 400))
    assert (found - chances).norm() < 1.1 * ((chances * (1 - chances)).sum() / 400) ** 0.5  # the spread of 400 draws
    assert (found - chances.roll(1, 0)).norm() > 1.5 * (found - chances).norm()


def test_the_student_learns_from_what_the_teacher_said_of_its_blocks(nb, quick, train, tokenizer, texts, lessons):
    """Another student than without a teacher, in another folder; the loss of two blocks takes the words spoken of these two."""
    torch, taught = nb["torch"], lessons(quick)
    trainer = train(quick, taught=taught)
    alone = train(quick)
    assert not same_weights(nb, trainer.model, alone.model, atol=1e-4)
    blocks = nb["pack_texts"](texts[0], tokenizer, quick.context_length).with_format("torch")
    model, batch = trainer.model.eval(), blocks[[7, 3]]
    with torch.no_grad():
        loss = trainer.compute_loss(model, batch | {"row": torch.tensor([7, 3])}, num_items_in_batch=10)
        logits = model(batch["input_ids"]).logits
    expected = nb["mixed_loss"](logits, batch["labels"], taught[[7, 3]], 0.3) / 10
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss.item() != pytest.approx(nb["mixed_loss"](logits, batch["labels"], taught[[3, 7]], 0.3).item() / 10, rel=1e-5)
