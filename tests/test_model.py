import math

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
    assert nb["compressor_bpc"](text, text) < nb["compressor_bpc"]("", text)


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
    """Settings and blocks of a short pretraining: one layer, two epochs, four works of the sample."""
    cfg = nb["replace"](nb["make_config"]("smoke", 2, seed=1, data_dir="data", artifacts_dir=str(tmp_path)),
                        num_hidden_layers=1)
    blocks = nb["DatasetDict"]({part: nb["pack_texts"](texts, tokenizer, cfg.context_length) for part, texts in (
        ("train", sample_texts[:4]), ("validation", sample_texts[-1:]))}).with_format("torch")
    return cfg, nb["inspect_hardware"](), tokenizer, blocks, cfg.batch_size


def run_quick(nb, quick):
    cfg, hardware, tokenizer, blocks, per_device = quick
    nb["transformers"].set_seed(cfg.seed)
    return nb["pretrain"](nb["build_model"](cfg, tokenizer), cfg, hardware, tokenizer, blocks, per_device)


def test_weight_decay_reaches_the_matrices_and_the_best_checkpoint_is_kept(nb, quick):
    trainer = run_quick(nb, quick)
    matrices, norms = trainer.optimizer.param_groups
    assert (matrices["weight_decay"], norms["weight_decay"]) == (quick[0].weight_decay, 0.0)
    assert {p.dim() for p in matrices["params"]} == {2} and {p.dim() for p in norms["params"]} == {1}
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


def test_other_settings_or_data_get_a_folder_of_their_own(nb, quick):
    cfg, _, tokenizer, blocks, _ = quick
    model = nb["build_model"](cfg, tokenizer)
    fields, data = ("seed", "weight_decay"), blocks["train"].select_columns("input_ids")
    folder = nb["run_folder"]("pretrain", cfg, model, data, fields)
    assert folder == nb["run_folder"]("pretrain", cfg, model, data, fields)
    others = [nb["run_folder"]("pretrain", nb["replace"](cfg, weight_decay=0.7), model, data, fields),
              nb["run_folder"]("pretrain", cfg, model, data.select(range(3)), fields)]
    nb["torch"].nn.init.zeros_(model.model.embed_tokens.weight)
    others.append(nb["run_folder"]("pretrain", cfg, model, data, fields))
    assert len({folder, *others}) == 4


def test_non_finite_loss_stops_the_run(nb):
    state, args = nb["transformers"].TrainerState(), type("Args", (), {"output_dir": "artifacts/checkpoints/run-1"})
    callback = nb["StopOnNonFinite"]()
    callback.on_log(args, state, None, {"loss": 2.5})
    callback.on_log(args, state, None, {"eval_loss": 2.5})
    with pytest.raises(FloatingPointError, match="learning_rate"):
        callback.on_log(args, state, None, {"loss": float("nan")})
