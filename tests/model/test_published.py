"""The table of published models against their published totals and against transformers' own model
classes.
"""

from math import prod

import pytest

from cotjax.errors import UsageError
from cotjax.model.params import declared
from cotjax.model.published import PUBLISHED, published
from cotjax.weights.hf_config import config_from_hf, config_to_hf
from cotjax.weights.huggingface import stored_shapes

TOTALS = {
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "deepseek-r1-distill-qwen-7b": 7_615_616_512,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_add_up_to_the_published_total(name):
    assert sum(prod(weight.shape) for weight in declared(published(name)).values()) == TOTALS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_goes_out_as_config_json_and_comes_back(name):
    assert config_from_hf(config_to_hf(published(name))) == published(name)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_has_every_name_and_shape(name):
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = published(name)
    hf = config_to_hf(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**hf))
    assert type(model).__name__ == hf["architectures"][0]
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert stored_shapes(config) == theirs
    read = model.config
    assert (read.rms_norm_eps, read.max_position_embeddings) == (config.norm_eps, config.max_length)
    assert read.rope_parameters["rope_theta"] == config.rope_theta
    assert read.rope_parameters["rope_type"] == (
        "default" if config.rope_scaling is None else "llama3"
    )


def test_fields_may_be_changed_and_names_are_told_apart():
    assert published("Qwen3-8B", layers=2).layers == 2
    with pytest.raises(
        UsageError,
        match=r"no published model is called 'qwen3-7b'; did you mean 'qwen3-1\.7b'\? "
        r"There are qwen3-0\.6b, ",
    ):
        published("qwen3-7b")
