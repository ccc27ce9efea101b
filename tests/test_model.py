import copy
import math
from types import SimpleNamespace

import pytest


def test_full_model_has_150_million_parameters(nb):
    cfg = nb["make_config"]("full", seed=1, data_dir="data")

    class Vocabulary:
        bos_token_id, eos_token_id, pad_token_id = 1, 2, 3

        def __len__(self):
            return cfg.vocab_size

    with nb["torch"].device("meta"):
        model = nb["build_model"](cfg, Vocabulary())
    low, high = cfg.parameters_range
    assert (low, high) == (140e6, 160e6) and low <= model.num_parameters() <= high
    assert nb["parameters_by_part"](model)["параметров, млн"].sum() == pytest.approx(model.num_parameters() / 1e6)


def test_maskless_attention_is_exact_on_right_padded_blocks(nb, tiny, tokenizer):
    block = nb["pack_texts"](["Вечер был тих. Лодка стояла у берега."], tokenizer, 64).with_format("torch")[:]
    outputs = {}
    for attention in ("sdpa_causal", "sdpa"):
        tiny.eval().set_attn_implementation(attention)
        outputs[attention] = tiny(input_ids=block["input_ids"], attention_mask=block["attention_mask"]).logits
    tiny.set_attn_implementation("sdpa_causal")
    real = block["attention_mask"].bool()
    assert nb["torch"].allclose(outputs["sdpa"][real], outputs["sdpa_causal"][real], atol=1e-5)


def test_bits_per_char_of_a_uniform_model_is_exact(nb, tokenizer, sample_texts):
    uniform = nb["build_model"](nb["make_config"]("smoke", seed=1, data_dir="data"), tokenizer)
    nb["torch"].nn.init.zeros_(uniform.model.norm.weight)  # zero hidden states: all logits are equal
    tokens = sum(map(len, nb["encode"](sample_texts, tokenizer)))
    expected = tokens * math.log2(len(tokenizer)) / sum(map(len, sample_texts))
    assert nb["bits_per_char"](uniform, tokenizer, sample_texts, 128) == pytest.approx(expected, rel=1e-6)


def test_bits_per_char_does_not_depend_on_the_batch_and_keeps_the_mode(nb, tiny, tokenizer, sample_texts):
    tiny.train()
    first, second = (nb["bits_per_char"](tiny, tokenizer, sample_texts[:3], 128, size) for size in (1, 7))
    assert first == pytest.approx(second, rel=1e-5) and tiny.training


def test_generate_returns_continuations_only_and_restores_the_state(nb, tiny, tokenizer):
    torch = nb["torch"]
    tiny.train()
    before = torch.random.get_rng_state()
    texts = nb["generate"](tiny, tokenizer, nb["TEST_PROMPTS"], 12, seed=3)
    assert len(texts) == 10 and not any(t.startswith(p[:12]) for t, p in zip(texts, nb["TEST_PROMPTS"]))
    assert all(len(ids) <= 12 for ids in nb["generate_ids"](tiny, tokenizer, nb["TEST_PROMPTS"], 12, seed=3))
    assert tiny.training and tiny.config._attn_implementation == "sdpa_causal"
    assert torch.equal(before, torch.random.get_rng_state())


def test_generate_is_repeatable_and_batching_changes_nothing(nb, tiny, tokenizer):
    prompts = ["Да", "Любовь мешает смерти и всему остальному"]
    together = nb["generate"](tiny, tokenizer, prompts, 10, do_sample=False)
    assert together == [nb["generate"](tiny, tokenizer, [prompt], 10, do_sample=False)[0] for prompt in prompts]
    assert nb["generate"](tiny, tokenizer, prompts, 10, seed=5) == nb["generate"](tiny, tokenizer, prompts, 10, seed=5)


def test_baselines_on_a_known_text(nb):
    np = nb["np"]
    ids = np.array([0, 0, 0, 1])
    counts = np.array([4, 2, 1])  # three zeros and a one, plus one for each of three tokens
    expected = -np.log2(counts / counts.sum())[ids].sum() / 8
    assert nb["unigram_bpc"](ids, ids, 3, 8) == pytest.approx(expected)
    text = "Вечер был тих. " * 50
    [primed], [alone] = nb["compressor_bpc"](text, [text]), nb["compressor_bpc"]("", [text])
    assert primed < alone


def test_longest_copy(nb):
    index = nb["CopyIndex"]("На дворе стояла осень, и листья летели по ветру через пустой сад.")
    assert index.longest_copy("Потом листья летели по ветру вдруг") == " листья летели по ветру "
    assert index.longest_copy("совсем другое") == ""


def test_prompt_callback_keeps_its_texts_in_the_history(nb, tiny, tokenizer):
    state, args = nb["transformers"].TrainerState(), type("Args", (), {"seed": 1})
    nb["PromptCallback"](nb["TEST_PROMPTS"], 5).on_evaluate(args, state, None, model=tiny, processing_class=tokenizer)
    assert [len(record["samples"]) for record in state.log_history] == [10]


@pytest.fixture
def quick(nb, tokenizer, sample_texts, tmp_path):
    """Settings and texts of a short pretraining: one layer, two epochs, four works of the sample."""
    cfg = nb["replace"](nb["make_config"]("smoke", 2, seed=1, data_dir="data", artifacts_dir=str(tmp_path)),
                        num_hidden_layers=1, distillation=0.0)
    return (cfg, nb["inspect_hardware"](), tokenizer, nb["tokenize_texts"](sample_texts[:4], tokenizer),
            nb["pack_texts"](sample_texts[-1:], tokenizer, cfg.context_length), cfg.batch_size)


def run_quick(nb, quick):
    cfg, hardware, tokenizer, *rest = quick
    nb["transformers"].set_seed(cfg.seed)
    return nb["pretrain"](nb["build_model"](cfg, tokenizer), cfg, hardware, tokenizer, *rest,
                          callbacks=[nb["PromptCallback"](nb["TEST_PROMPTS"], 5)])


def test_weight_decay_reaches_the_matrices_and_the_best_checkpoint_is_kept(nb, quick):
    trainer = run_quick(nb, quick)
    matrices, embeddings, norms = trainer.optimizer.param_groups
    decays = [group["weight_decay"] for group in (matrices, embeddings, norms)]
    assert decays == [quick[0].weight_decay, quick[0].weight_decay, 0.0]
    assert {p.dim() for p in matrices["params"]} == {2} and {p.dim() for p in norms["params"]} == {1}
    assert embeddings["params"] == [trainer.model.get_input_embeddings().weight]
    assert trainer.state.best_metric == min(nb["history"](trainer, "eval_loss"))


def test_a_cut_run_resumes_at_the_last_whole_checkpoint(nb, quick):
    cfg = quick[0]
    whole = run_quick(nb, quick)
    (folder,) = (cfg.artifacts_dir / "checkpoints").iterdir()
    first, last = sorted(folder.iterdir(), key=lambda path: int(path.name.split("-")[1]))
    (last / "trainer_state.json").unlink()  # cut short by a kill
    resumed = run_quick(nb, quick)
    assert nb["history"](resumed, "eval_loss")[0] == nb["history"](whole, "eval_loss")[0]
    assert nb["history"](resumed, "eval_loss")[-1] == pytest.approx(nb["history"](whole, "eval_loss")[-1], abs=0.02)
    assert len(nb["history"](resumed, "samples")) == cfg.epochs


def test_a_row_of_the_table_runs_again(nb, quick, sample_texts):
    """Settings read back from a CSV are numpy numbers; the printed call passes plain ones."""
    cfg, hardware, tokenizer, stream, _, per_device = quick
    table = nb["pd"].DataFrame([{name: getattr(cfg, name) for name in nb["PRETRAIN_FIELDS"]}] * 2)
    settings = table[list(nb["PRETRAIN_FIELDS"])].to_dict("records")[0]
    settings |= {"teacher_layers": 0, "teacher_epochs": 0, "teacher_noise": 0.0}  # as in every row without a teacher
    row = nb["run_ablation"](nb["replace"](cfg, weight_decay=0.7), hardware, tokenizer, stream, sample_texts[-1:],
                             per_device, **settings)
    assert {name: row[name] for name in nb["PRETRAIN_FIELDS"]} == settings


def test_mixed_loss_lies_between_the_true_token_and_the_teacher(nb):
    torch = nb["torch"]
    torch.manual_seed(0)
    logits, taught = torch.randn(2, 6, 11), torch.randn(2, 6, 11)
    labels = torch.randint(11, (2, 6))
    labels[0, 3:] = -100
    kept, log_probabilities = labels[:, 1:] != -100, logits[:, :-1].log_softmax(-1)
    hard = nb["F"].cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    soft = -(taught[:, :-1].softmax(-1) * log_probabilities).sum(-1)[kept].sum()
    for share in (0.0, 0.3, 1.0):
        assert nb["mixed_loss"](logits, taught, labels, share) == pytest.approx(((1 - share) * hard + share * soft).item(), rel=1e-5)


def distilled(nb, quick, per_device=8, **settings):
    cfg, hardware, tokenizer, stream, validation, _ = quick
    cfg = nb["replace"](cfg, distillation=0.5, teacher_epochs=1, **settings)
    teacher = nb["frozen_copy"](nb["train_teacher"](cfg, hardware, tokenizer, stream, validation, 8).model, hardware)
    nb["transformers"].set_seed(cfg.seed)
    return nb["pretrain"](nb["build_model"](cfg, tokenizer), cfg, hardware, tokenizer, stream, validation, per_device, [], teacher)


def test_student_learns_from_a_teacher_that_stays_as_it_was(nb, quick):
    torch = nb["torch"]
    trainer = distilled(nb, quick)
    teacher, again = trainer.teacher, distilled(nb, quick).teacher  # the second call finds the checkpoints of the first
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), again.parameters()))
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    assert len(list((quick[0].artifacts_dir / "checkpoints").iterdir())) == 2
    losses = nb["history"](trainer, "eval_loss")
    assert losses[-1] < losses[0]
    model, batch = trainer.model.eval(), nb["default_data_collator"]([trainer.eval_dataset[i] for i in range(4)])
    plain = model(**batch).loss.item()  # evaluation knows no teacher
    trainer.eval_dataset = trainer.eval_dataset.select(range(4))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(plain, rel=1e-4)


def test_accumulation_leaves_the_distilled_loss_as_it_is(nb, quick, tmp_path):
    whole, halves = (distilled(nb, quick, size, token_noise=0.0, artifacts_dir=tmp_path / str(size)) for size in (8, 4))
    for first, second in zip(nb["history"](whole, "loss"), nb["history"](halves, "loss")):
        assert first == pytest.approx(second, rel=2e-3)


def test_frozen_copy_predicts_the_same_without_hooks(nb, quick, tiny, tokenizer):
    torch = nb["torch"]
    model = nb["build_model"](quick[0], tokenizer)
    nb["add_regularization"](model, 0.3, 0.5)
    copy = nb["frozen_copy"](model, quick[1])
    ids = torch.randint(4, len(tokenizer), (2, 16))
    assert torch.allclose(copy(ids).logits, model.eval()(ids).logits, atol=1e-5)
    assert not copy.model.embed_tokens._forward_pre_hooks and not copy.model.layers[0].mlp.down_proj._forward_hooks


def test_comparisons_hold_one_row_and_those_that_differ_in_one_thing(nb):
    base = {name: 1 for name in nb["PRETRAIN_FIELDS"]}
    rows = nb["pd"].DataFrame([base, base | {"dropout": 2}, base | {"optimizer": 2, "weight_decay": 2}, base | {"weight_decay": 2}])
    assert list(nb["differing_only_in"](rows, ["dropout"]).index) == [0, 1]
    assert list(nb["differing_only_in"](rows, nb["COMPARISONS"]["оптимизатор"]).index) == [0, 2]
    taught = nb["pd"].concat([rows, nb["pd"].DataFrame([base | {"epochs": 3}, base | {"epochs": 3, "distillation": 2}])], ignore_index=True)
    assert list(nb["differing_only_in"](taught, ["distillation"]).index) == [4, 5]


def test_other_settings_or_data_get_a_folder_of_their_own(nb, quick):
    cfg, _, tokenizer, stream, *_ = quick
    model = nb["build_model"](cfg, tokenizer)
    fields, data = ("seed", "weight_decay"), stream.tokens.tobytes()
    folder = nb["run_folder"]("pretrain", cfg, [model], data, fields)
    assert folder == nb["run_folder"]("pretrain", cfg, [model], data, fields)
    others = [nb["run_folder"]("pretrain", nb["replace"](cfg, weight_decay=0.7), [model], data, fields),
              nb["run_folder"]("pretrain", cfg, [model], data[:-4], fields)]
    nb["torch"].nn.init.zeros_(model.model.embed_tokens.weight)
    others.append(nb["run_folder"]("pretrain", cfg, [model], data, fields))
    deeper = nb["build_model"](nb["replace"](cfg, num_hidden_layers=cfg.num_hidden_layers + 1), tokenizer)
    nb["torch"].nn.init.zeros_(deeper.model.embed_tokens.weight)
    others.append(nb["run_folder"]("pretrain", cfg, [deeper], data, fields))
    others.append(nb["run_folder"]("pretrain", cfg, [model, nb["build_model"](cfg, tokenizer)], data, fields))
    assert len({folder, *others}) == 6


def test_non_finite_loss_stops_the_run(nb):
    state, args = nb["transformers"].TrainerState(), type("Args", (), {"output_dir": "artifacts/checkpoints/run-1"})
    callback = nb["StopOnNonFinite"]()
    callback.on_log(args, state, None, {"loss": 2.5})
    callback.on_log(args, state, None, {"eval_loss": 2.5})
    with pytest.raises(FloatingPointError, match="learning_rate"):
        callback.on_log(args, state, None, {"loss": float("nan")})


def random_matrices(torch, seed=0):
    torch.manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 16), (8, 16), (16, 8), (5,))]


def muon_adamw(nb, parameters, dtype, **kwargs):
    return nb["MuonAdamW"]([dict(params=parameters[:3], lr=0.02, weight_decay=0.3, muon=True),
                            dict(params=parameters[3:], lr=1e-3, weight_decay=0.1, muon=False)], dtype=dtype, **kwargs)


def test_muon_takes_the_steps_of_torch(nb):
    torch = nb["torch"]
    ours, theirs = random_matrices(torch), random_matrices(torch)
    optimizers = [muon_adamw(nb, ours, torch.bfloat16), torch.optim.Muon(theirs[:3], lr=0.02, weight_decay=0.3),
                  torch.optim.AdamW(theirs[3:], lr=1e-3, weight_decay=0.1)]
    for _ in range(3):
        for mine, other in zip(ours, theirs):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for mine, other in zip(ours, theirs):
        assert torch.allclose(mine, other, atol=2e-3)  # bf16 products, rounded at another place
    assert torch.equal(ours[3], theirs[3])


def test_muon_continues_from_its_saved_state(nb):
    torch = nb["torch"]

    def step(parameters, optimizer, seed):
        torch.manual_seed(seed)
        for parameter in parameters:
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    whole = random_matrices(torch)
    optimizer = muon_adamw(nb, whole, torch.float32)
    step(whole, optimizer, 1)
    cut = [torch.nn.Parameter(parameter.detach().clone()) for parameter in whole]
    resumed = muon_adamw(nb, cut, torch.float32)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(whole, optimizer, 2)
    step(cut, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut))


def test_orthogonalize_brings_singular_values_near_one_in_every_precision(nb):
    torch = nb["torch"]
    torch.manual_seed(0)
    matrices = torch.randn(3, 32, 16) * 1e-4
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        values = torch.linalg.svdvals(nb["orthogonalize"](matrices, dtype).float())
        assert 0.5 < values.min() and values.max() < 1.4


def test_recipe_trains_with_fp16_loss_scaling(nb, tokenizer, sample_texts):
    """What a card without bf16 does: fp16 autocast, a gradient scaler, Newton–Schulz in fp16."""
    torch = nb["torch"]
    cfg = nb["make_config"]("smoke", seed=1, data_dir="data")
    model = nb["build_model"](cfg, tokenizer)
    nb["add_regularization"](model, 0.1, 0.05)
    nb["narrow_residual"](model)
    fp16 = nb["Hardware"]("T4", False, "fp16", 15.0, None, False)
    optimizer, scaler = nb["make_optimizer"](model, cfg, fp16), torch.amp.GradScaler("cpu", init_scale=2.0**20)
    assert optimizer.dtype == torch.float16 and not optimizer.defaults["fused"]
    batch = nb["pack_texts"](sample_texts[:1], tokenizer, 128).select(range(8)).with_format("torch")[:]
    losses, scales = [], []
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


def test_noise_acts_in_training_only_and_leaves_a_plain_llama(nb, tokenizer, tmp_path):
    torch = nb["torch"]
    model = nb["build_model"](nb["make_config"]("smoke", seed=1, data_dir="data"), tokenizer)
    plain = set(model.state_dict())
    ids = torch.randint(4, len(tokenizer), (2, 32))
    clean = model.eval()(ids).logits
    nb["add_regularization"](model, 0.3, 0.5)
    assert torch.equal(model(ids).logits, clean) and set(model.state_dict()) == plain
    model.train()
    assert not torch.allclose(model(ids).logits, clean) and not torch.equal(model(ids).logits, model(ids).logits)
    model.save_pretrained(tmp_path)
    loaded = nb["AutoModelForCausalLM"].from_pretrained(tmp_path).eval()
    assert type(loaded).__name__ == "LlamaForCausalLM" and torch.allclose(loaded(ids).logits, clean, atol=1e-4)


def test_residual_is_bf16_only_where_training_computes_in_bf16(nb, tokenizer):
    torch = nb["torch"]
    model = nb["build_model"](nb["make_config"]("smoke", seed=1, data_dir="data"), tokenizer)
    nb["narrow_residual"](model)
    embeddings, ids = model.get_input_embeddings(), torch.tensor([[5, 6]])
    with torch.autocast("cpu", torch.bfloat16):
        assert embeddings(ids).dtype == torch.bfloat16
        model.eval()
        assert embeddings(ids).dtype == torch.float32
    assert embeddings.train()(ids).dtype == torch.float32


def test_callback_scores_packed_texts_as_bits_per_char_does(nb, quick, sample_texts):
    cfg, _, tokenizer, *_ = quick
    model, texts = nb["build_model"](cfg, tokenizer), sample_texts[-2:]
    state = SimpleNamespace(log_history=[], global_step=0, epoch=0.0)
    scorer = nb["BitsPerCharCallback"](nb["pack_texts"](texts, tokenizer, cfg.context_length), sum(map(len, texts)))
    scorer.on_evaluate(None, state, None, model, tokenizer)
    assert state.log_history[0]["val_bpc"] == pytest.approx(nb["bits_per_char"](model, tokenizer, texts, cfg.context_length))


def test_teacher_is_smaller_learns_shorter_and_from_nobody(nb):
    cfg = nb["make_config"]("full", seed=1, data_dir="data")
    teacher = nb["teacher_config"](cfg)
    assert (teacher.num_hidden_layers, teacher.epochs) == (cfg.teacher_layers, cfg.teacher_epochs)
    assert teacher.token_noise == cfg.teacher_noise < cfg.token_noise and teacher.distillation == 0.0 < cfg.distillation


def test_one_function_runs_a_row_of_the_ablations(nb, quick, sample_texts):
    cfg, hardware, tokenizer, stream, _, per_device = quick
    row = nb["run_ablation"](cfg, hardware, tokenizer, stream, sample_texts[-1:], per_device, weight_decay=0.7,
                             optimizer="adamw", learning_rate=1e-3)
    taught = nb["run_ablation"](cfg, hardware, tokenizer, stream, sample_texts[-1:], per_device, distillation=0.5,
                                teacher_epochs=1)
    assert taught["distillation"] == 0.5 and row["distillation"] == 0.0
    assert (row["weight_decay"], row["optimizer"], row["epochs"]) == (0.7, "adamw", 2)
    scores = [float(score) for score in row["val_bpc_by_epoch"].split()]
    assert len(scores) == 2 and row["val_bpc"] == scores[-1] < scores[0]
