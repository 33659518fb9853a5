"""Configurations: sources and their order, the nearest known key, ranges."""

from __future__ import annotations

from importlib import resources

import pytest

from fastdiff.config import (
    ConfigError,
    DiscriminatorConfig,
    TrainConfig,
    load_discriminator_config,
    load_train_config,
)


def test_defaults_file_and_overrides_in_that_order(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("iterations: 7\nlearning_rate: 1e-3\nmodel:\n  width: 16\n")
    config = load_train_config(file, ["iterations=9", "model.mults=[1,2,4]", "betas=[0.9,0.95]"])
    assert (config.iterations, config.learning_rate, config.batch) == (9, 1e-3, TrainConfig().batch)
    assert (config.model.width, config.model.mults, config.betas) == (16, [1, 2, 4], [0.9, 0.95])


def test_a_preset_comes_before_the_file_and_one_value_is_a_list(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("objective:\n  gamma: 0.1\nema: 0.9\n")
    preset = {"objective": {"name": "ddpm", "gamma": 0.2}, "batch": 5}
    config = load_train_config(file, ["posthoc_ema=0.1"], preset)
    assert (config.objective.name, config.objective.gamma, config.batch) == ("ddpm", [0.1], 5)
    assert (config.ema, config.posthoc_ema) == ([0.9], [0.1])
    assert load_train_config(None, ["objective.gamma=[0,0.2]"]).objective.gamma == [0.0, 0.2]
    with pytest.raises(ConfigError, match="preset: unknown key batches; did you mean batch"):
        load_train_config(None, [], {"batches": 3})


def test_as_dict_round_trips(tmp_path):
    config = load_train_config(None, ["seed=3"])
    overrides = [f"{key}={value}" for key, value in config.as_dict().items() if key not in ("model", "objective")]
    assert load_train_config(None, overrides).as_dict() == config.as_dict()


def test_the_shipped_configuration_is_valid():
    assert load_train_config(str(resources.files("fastdiff.assets") / "digits.yaml")).data == "digits16"


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("learning_rat=1", "unknown key learning_rat; did you mean learning_rate?"),
        ("p_mean=1", "unknown key p_mean; did you mean objective.P_mean?"),
        ("objective.Pmean=1", "unknown key objective.Pmean; did you mean objective.P_mean?"),
        ("model.withd=8", "unknown key model.withd; did you mean model.width?"),
        ("batch.size=8", "batch"),
        ("zzz=1", "unknown key zzz; did you mean"),
        ("batch=many", "batch: .*'many'"),
        ("model=big", "model must be a mapping of keys to values, got 'big'"),
        ("batch", "expected key=value, got 'batch'"),
        ("iterations=0", "iterations must be at least 1, got 0"),
        ("seed=-1", "seed must be at least 0"),
        ("learning_rate=nan", "learning_rate must be positive and finite"),
        ("learning_rate=0", "learning_rate must be positive"),
        ("objective.sigma_data=inf", "objective.sigma_data must be positive and finite"),
        ("objective.T=0", "objective.T must be at least 1"),
        ("objective.sigma_max=0.001", "objective.sigma_max must be above sigma_min = 0.01 and finite"),
        ("objective.gamma=-1", "objective.gamma must be a number of at least 0, or two"),
        ("objective.gamma=[0,0.1,0.2]", "objective.gamma must be a number of at least 0, or two"),
        ("objective.gamma=[[1]]", r"objective.gamma must be a list of single values, got \[\[1\]\]"),
        ("ema={a: 1}", "ema must be a list of single values"),
        ("ema=[0.9,0.9]", "ema must be different decays"),
        ("posthoc_ema=[0.05,0.0501]", "posthoc_ema must be different to three decimals"),
        ("data=", "data must be the name of a set"),
        ("objective.P_mean=nan", "objective.P_mean must be finite"),
        ("ema=[]", "ema must be at least one decay"),
        ("posthoc_ema=[0.1,0.3]", "posthoc_ema must be between 0 and 0.28, got 0.3"),
        ("keep=0", "keep must be at least 1"),
        ("augment=2", r"augment must be in \[0, 1\]"),
        ("schedule=linear", "schedule must be cosine or constant, got 'linear'"),
        ("reference=dev", "reference must be empty, train or test, got 'dev'"),
        ("ema=1", r"ema must be in \[0, 1\), got 1.0"),
        ("label_dropout=1.5", "label_dropout must be in"),
        ("betas=[0.9]", "betas must be two numbers"),
        ("amp=fp16", "amp must be auto, bfloat16, float16 or none, got 'fp16'"),
    ],
)
def test_a_bad_override_is_named_in_one_line(override, wanted):
    with pytest.raises(ConfigError, match=wanted) as caught:
        load_train_config(None, [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1\n", "5\n"])
def test_a_bad_file_is_named_in_one_line(tmp_path, text):
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml") as caught:
        load_train_config(file)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_in_a_file_names_the_file(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("iteration: 5\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: unknown key iteration; did you mean iterations\?"):
        load_train_config(file)
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read"):
        load_train_config(tmp_path / "absent.yaml")


def test_discriminators_have_a_configuration_of_their_own(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("fakes: 70\nmodel:\n  width: 16\n")
    config = load_discriminator_config(file, ["sigma_max=20"])
    assert isinstance(config, DiscriminatorConfig)
    assert (config.fakes, config.sigma_max, config.model.width) == (70, 20.0, 16)
    assert config.batch == DiscriminatorConfig().batch
    for override, wanted in [
        ("P_mean=1", "unknown key P_mean"),
        ("validation=1", r"validation must be in \(0, 1\), got 1.0"),
        ("sigma_min=inf", "sigma_min must be positive and finite"),
        ("patience=-1", "patience must be at least 0"),
        ("weight_decay=inf", "weight_decay must be at least 0 and finite"),
        ("ema=1", "ema must be in"),
        ("batch=3", "batch must be even"),
    ]:
        with pytest.raises(ConfigError, match=wanted):
            load_discriminator_config(file, [override])
