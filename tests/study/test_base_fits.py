"""A base that does not fit its tokenizer or examples is refused before anything is claimed."""

import jax
import pytest
from helpers import tiny
from helpers.configs import ONE_UPDATE, base_folder

from cotjax.cli.main import main
from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.data.trajectories import write_trajectories
from cotjax.errors import UsageError
from cotjax.plan.main import model_of


def refused(folder, capsys, *more):
    write_trajectories(folder / "train.jsonl", [tiny.trajectory("a")])
    (folder / "config.py").write_text(ONE_UPDATE)
    arguments = ["train", "--config", str(folder / "config.py"), "--out", str(folder / "run")]
    assert main([*arguments, f"--config.data.trajectories={folder / 'train.jsonl'}", *more]) == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("cotjax: ") and error.count("\n") == 1 and not (folder / "run").exists()
    ), error
    return error


def test_ids_beyond_the_vocabulary_are_refused_with_both_numbers(tmp_path, capsys, monkeypatch):
    ids = Codec.load(base_folder(tmp_path / "whole")).vocab_size
    base = base_folder(tmp_path / "base", vocab_size=ids - 1)
    monkeypatch.setattr(jax, "jit", lambda *args, **more: pytest.fail("something is compiled"))
    error = refused(tmp_path, capsys, f"--config.model.base={base}")
    assert f"ids up to {ids - 1}, the model's vocabulary ends at {ids - 2}" in error
    other = f"--config.model.tokenizer={tmp_path / 'whole'}"
    assert f"ids up to {ids - 1}" in refused(tmp_path, capsys, f"--config.model.base={base}", other)


def test_a_plan_compares_tokenizer_and_vocabulary_too(tmp_path):
    ids = Codec.load(base_folder(tmp_path / "whole")).vocab_size
    config = default_config()
    config.model.base = str(base_folder(tmp_path / "base", vocab_size=ids - 1))
    with pytest.raises(UsageError, match=f"vocabulary ends at {ids - 2}"):
        model_of(config)
    config.model.base = str(base_folder(tmp_path / "exact", vocab_size=ids))
    assert model_of(config).vocab_size == ids


def test_a_plan_needs_config_json_alone_and_counts_a_head_of_its_own_where_it_is_there(tmp_path):
    config = default_config()
    base = base_folder(tmp_path / "base", tied_embeddings=False)
    config.model.base = str(base)
    written = (base / "config.json").read_text()
    (base / "config.json").write_text(
        written.replace('"tie_word_embeddings": false', '"tie_word_embeddings": true')
    )
    assert not model_of(config).tied_embeddings
    (base / "model.safetensors").unlink()
    assert model_of(config).tied_embeddings


def test_examples_longer_than_the_positions_are_refused_packed_rows_are_not(tmp_path, capsys):
    base = base_folder(tmp_path / "base", max_length=250)
    assert "data.max_length is 256; the model's positions allow 1 to 250" in refused(
        tmp_path, capsys, f"--config.model.base={base}"
    )
    arguments = [
        "train",
        "--config",
        str(tmp_path / "config.py"),
        "--out",
        str(tmp_path / "run"),
        f"--config.model.base={base}",
    ]
    arguments += [
        f"--config.data.trajectories={tmp_path / 'train.jsonl'}",
        "--config.data.max_length=250",
    ]
    assert main([*arguments, "--config.train.row_length=512"]) == 0
