"""Configs: ml_collections files whose every field is declared here, with its unit and default.

A config file defines `get_config() -> ConfigDict`, which starts from `default_config()` and changes
what its experiment changes. On the command line `--config FILE` loads it, and
`--config.train.steps=200` changes a field. An unknown field is an error.
"""

from cotjax.config.autocoa import AUTOCOA_ARM_FIELDS, STAGE_FIELDS
from cotjax.config.fields import ARM_FIELDS, PATHS, default_config, own_files, sampler_mesh
from cotjax.config.overrides import load_config, set_field, set_fields

__all__ = (
    "ARM_FIELDS",
    "AUTOCOA_ARM_FIELDS",
    "PATHS",
    "STAGE_FIELDS",
    "default_config",
    "load_config",
    "own_files",
    "sampler_mesh",
    "set_field",
    "set_fields",
)
