"""A study whose episodes are growing texts: trained, played by both kinds of action, and judged."""

import pytest

from cotjax.cli.main import main
from cotjax.config import default_config
from cotjax.data.codec import Codec
from cotjax.diagnostics.searches import figures, judged
from cotjax.envs.worlds import load_world
from cotjax.errors import UsageError
from cotjax.report.page import write_report
from cotjax.rollout.record import read_records
from cotjax.study.evaluate import check_layout, elicitation_of
from cotjax.study.training_data import prompt_of

STUDY = '''
"""A study of growing texts, small enough for a test."""
from cotjax.config import default_config


def get_config():
    config = default_config("search_qa")
    config.workers = 0
    config.data.layout = "growing"
    config.games.train = config.games.in_domain = 1
    config.games.ood = 0
    config.task_types.collect = config.task_types.in_domain
    config.model.base = "random"
    config.model.width, config.model.layers, config.model.heads, config.model.kv_heads = 32, 1, 2, 1
    config.model.head_size, config.model.feed_forward = 16, 48
    config.train.steps = config.train.save_every = config.train.batch = 2
    config.train.warmup = 1
    config.train.row_length = config.data.max_length = 1024
    config.train.information_examples = 2
    config.evaluate.max_steps, config.evaluate.slots, config.evaluate.max_new_tokens = 4, 4, 16
    config.evaluate.max_length = 1200
    config.arms = {"sft": {"label": "standard SFT", "fraction": 0.0}}
    return config
'''


@pytest.mark.slow
def test_a_study_of_growing_texts_trains_plays_and_reports(tmp_path, capsys):
    (tmp_path / "growing.py").write_text(STUDY)
    out = tmp_path / "run"
    assert main(["study", "--config", str(tmp_path / "growing.py"), "--out", str(out)]) == 0
    records = list(read_records(out / "records"))
    assert {record.driver for record in records} == {"cot", "prompt", "reference"}
    config = default_config("search_qa")
    config.data.layout = "growing"
    codec = Codec.load(out / "tokenizer", "chatml", prompt_of(config))
    several = [record for record in records if len(record.steps) > 1]
    assert any(record.driver == "reference" for record in several)
    for record in several:
        assert "one growing text" in record.elicitation["history"]
        for turn in record.steps[1:]:
            shown = codec.growing.observed_ids(turn.observation)
            assert turn.prompt_ids[-len(shown) :] == tuple(shown)
            assert len(turn.prompt_ids) > len(shown), "the piece before it is part of the prompt"
    world = load_world("search_qa")
    games = {(game.split, game.id): game for game in world.games(out / "games", world.eval_split)}
    found = figures(judged(records, world, games))
    assert found["exact"].n == sum(record.driver != "reference" for record in records)
    assert "When they searched, in-domain" in capsys.readouterr().out
    page = (out / "report.html").read_text(encoding="utf-8")
    assert 'id="searches"' in page and "right if shown" in page
    (out / "games").rename(tmp_path / "elsewhere")
    assert 'id="searches"' not in write_report(out).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"evaluate.search": "mine"}, "must be 'real' or 'simulated'"),
        ({"evaluate.search": "simulated", "data.layout": "step"}, "needs one growing text"),
        ({"data.past_thoughts": True}, "keeps its thoughts anyway"),
        ({"data.history": 2}, "needs the layout 'step'"),
        ({"evaluate.offline": ("instructed",)}, "'instructed' needs turns"),
        ({"probes.names": ("revisions", "conflict")}, "'conflict' needs turns"),
    ],
)
def test_what_a_growing_text_does_not_allow_is_refused(changes, words):
    config = default_config("search_qa")
    config.data.layout = "growing"
    check_layout(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UsageError, match=words):
        check_layout(config)


def test_a_world_without_this_format_is_refused_and_the_prompt_opens_the_thought():
    config = default_config("alfworld")
    config.data.layout = "growing"
    with pytest.raises(UsageError, match="does not write its episodes as one growing text"):
        prompt_of(config)
    config = default_config("search_qa")
    config.data.layout, config.prompt.instruction = "growing", "world"
    prompt = prompt_of(config)
    assert "\\boxed{Jor Ko Po}" in prompt.instruction and "<begin_search>" in prompt.instruction
    elicitation = elicitation_of(config)
    assert elicitation.prompt_prefix == "</think>\n\n\\boxed{" and elicitation.cot_prefix == ""
