import pytest

CARDS = {16: 15.0, 24: 22.5, 40: 38.5, 80: 78.5}  # GB on the box -> GiB free when a process starts


def test_full_profile_has_the_sizes_of_the_brief(nb):
    cfg = nb["make_config"]("full", seed=1, data_dir="data")
    assert cfg.context_length == 512 and cfg.vocab_size == 3000 and 64 <= cfg.batch_size <= 128
    assert cfg.sft_model == "Qwen/Qwen2.5-0.5B" and cfg.sft_dataset == "d0rj/alpaca-cleaned-ru"
    assert nb["COMMIT"] in cfg.corpus and cfg.weight_decay > 0


def test_smoke_only_shrinks(nb):
    full = nb["make_config"]("full", seed=1, data_dir="data")
    smoke = nb["make_config"]("smoke", seed=1, data_dir="data")
    for name in ("vocab_size", "context_length", "hidden_size", "num_hidden_layers", "batch_size", "max_new_tokens"):
        assert getattr(smoke, name) < getattr(full, name)


def test_settings_override_the_profile(nb):
    cfg = nb["make_config"]("smoke", 3, corpus="x.zip", artifacts_dir="/tmp/a", sft_model="auto", seed=7, data_dir="d")
    assert (cfg.corpus, cfg.epochs, cfg.seed, cfg.sft_model) == ("x.zip", 3, 7, "/tmp/a/pretrain")


def test_unknown_profile_is_named(nb):
    with pytest.raises(ValueError, match="huge"):
        nb["make_config"]("huge", seed=1, data_dir="data")


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("card", CARDS)
def test_every_card_fills_the_same_batch(nb, card, lean):
    cfg = nb["make_config"]("full", seed=1, data_dir="data")
    state = 16 * 154e6 / 2**30
    sequence = nb["activation_gib"](cfg.context_length, cfg.num_hidden_layers, cfg.hidden_size,
                                    cfg.intermediate_size, cfg.vocab_size, lean)
    per_device, accumulation = nb["fit_batch"](cfg.batch_size, CARDS[card], state, sequence)
    assert per_device * accumulation == cfg.batch_size
    assert state + per_device * sequence <= 0.85 * CARDS[card]
    assert nb["plan_batch"](cfg, CARDS[card], lean)[0] >= per_device  # counts the weights a little lower


def test_bigger_cards_accumulate_less(nb):
    steps = [nb["fit_batch"](64, free, 2.3, 0.5)[1] for free in CARDS.values()]
    assert steps == sorted(steps, reverse=True) and steps[0] > steps[-1] == 1


def test_too_small_a_card_is_told_what_it_lacks(nb):
    with pytest.raises(MemoryError, match="ГиБ"):
        nb["fit_batch"](64, 2.0, 2.3, 0.5)


def test_prompts_and_questions_stand_verbatim(nb):
    assert len(nb["TEST_PROMPTS"]) == 10 and len(nb["QUESTIONS_RUS"]) == 4
    assert nb["TEST_PROMPTS"][8] == "Война не любезность, а самое гадкое дело"
    assert nb["QUESTIONS_RUS"][3] == "Как быстро выучить новый язык?"


def test_columns_are_printed_with_equal_decimals(nb):
    pd = nb["pd"]
    printed = pd.DataFrame({"бит на знак": [1.5, 2.25], "доля <pad>": [0.05, 0.5], "секунд": [1.234, 464.02], "всего": [0.75, 1234.4], "знаков": [7, 12_345],
                            "lr": [2e-5, 1e-4]}).apply(nb["format_column"])
    assert printed.to_dict("list") == {"бит на знак": ["1.500", "2.250"], "доля <pad>": ["5.00%", "50.00%"],
                                       "секунд": ["1.2", "464.0"], "всего": ["1", "1\u00a0234"], "знаков": ["7", "12\u00a0345"], "lr": ["2e-05", "0.0001"]}


def test_long_texts_say_how_much_was_cut(nb):
    assert nb["shorten"]("а" * 10, 10) == "а" * 10 and nb["shorten"]("а" * 12, 10) == "а" * 10 + "… [ещё 2 знаков]"
