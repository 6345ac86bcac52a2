"""The decoder families: how each reads its configuration, names its weights and computes one layer."""

from greats_jax.errors import ModelError
from greats_jax.models.families.family import Family, Weight
from greats_jax.models.families.gpt2 import GPT2
from greats_jax.models.families.llama import LLAMA
from greats_jax.models.families.mistral import MISTRAL
from greats_jax.models.families.qwen2 import QWEN2
from greats_jax.models.families.qwen3 import QWEN3

FAMILIES = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, GPT2)}


def family_named(name: str) -> Family:
    """The family whose `model_type` in config.json is `name`.

    Raises:
      ModelError: if the family is not supported; the message lists those that are.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"model type {name!r} is not supported: this package has {', '.join(FAMILIES)}")
    return FAMILIES[name]


__all__ = ["FAMILIES", "Family", "Weight", "family_named"]
