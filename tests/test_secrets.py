"""Nothing that is printed or saved shows a secret."""

import sys
import types

import pytest

from greats_jax.cli.main import main
from greats_jax.errors import ConfigError, DataError
from greats_jax.secrets import masked
from greats_jax.training.config_loading import load_config, to_yaml
from greats_jax.training.resuming import check_same_run
from greats_jax.training.trackers import build_trackers

TOKEN = "hf_" + "aB3" * 9
KEY = "0123456789abcdef0123"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pass@host/x and ssh://you@host", "https://***@host/x and ssh://***@host"),
        ("https://host/file?a=1&token=abc&b=2", "https://host/file?a=1&token=***&b=2"),
        (f"got {TOKEN}, sorry", "got ***, sorry"),
        (f"key {KEY}", "key ***"),
        ("hf_hub and x@y and a://b/c@d", "hf_hub and x@y and a://b/c@d"),
        ("seed", "seed"),
    ],
)
def test_what_is_secret_is_masked_and_nothing_else(text, shown):
    environment = {"WANDB_API_KEY": KEY, "DB_PASSWORD": "seed", "HOME": "got key sorry"}
    assert masked(text, environment) == shown


def test_every_error_is_masked(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", KEY)
    assert str(ConfigError(f"{KEY}: refused by https://u:p@host")) == "***: refused by https://***@host"
    assert KEY not in str(DataError(f"the hub said {KEY}"))


def test_a_run_saves_and_sends_no_secret(config_file, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    sent = []
    module = types.ModuleType("wandb")
    module.init = lambda **settings: sent.append(settings)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    config = load_config(
        config_file, [f"wandb_project={KEY}", "model=https://me:pass@host/m", "trackers=wandb", f"data.sources={TOKEN}"]
    )
    build_trackers(config, tmp_path, pytest.fail)
    saved = to_yaml(config)
    for secret in (KEY, TOKEN, "me:pass"):
        assert secret not in saved
        assert secret not in str(sent[0]["config"])
    # What was saved without the secret is still the configuration of this run.
    (tmp_path / "config.yaml").write_text(saved)
    check_same_run(tmp_path, config)


def test_the_command_line_prints_no_secret(config_file, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", KEY)
    for override in (f"model=https://me:{KEY}@host/m", f"lora.rank={KEY}", f"{KEY}=1", f"data.sources={KEY}"):
        assert main(["train", str(config_file), override]) != 0
    said = capsys.readouterr()
    assert KEY not in said.out + said.err
    assert said.err.count("***") >= 4
