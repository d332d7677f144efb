"""The one settings tree. Recipes, command-line overrides, `--help` and the JSON schema all come from it."""

from glmtune.config.describing import describe_settings, differing, recipe_schema
from glmtune.config.faults import RecipeError
from glmtune.config.reading import load_recipe, make_recipe, open_sections, read_yaml, to_yaml, with_overrides
from glmtune.config.tree import (
    ENDLESS_STEPS,
    FIELDS,
    OPEN_SECTIONS,
    SHORT_ANSWER,
    DataSettings,
    Dtype,
    EvaluationSettings,
    GenerationSettings,
    ModelSettings,
    NamedSettings,
    Recipe,
    Settings,
    Source,
    TrainingSettings,
    findable,
)

__all__ = [
    "ENDLESS_STEPS",
    "FIELDS",
    "OPEN_SECTIONS",
    "SHORT_ANSWER",
    "DataSettings",
    "Dtype",
    "EvaluationSettings",
    "GenerationSettings",
    "ModelSettings",
    "NamedSettings",
    "Recipe",
    "RecipeError",
    "Settings",
    "Source",
    "TrainingSettings",
    "describe_settings",
    "differing",
    "findable",
    "load_recipe",
    "make_recipe",
    "open_sections",
    "read_yaml",
    "recipe_schema",
    "to_yaml",
    "with_overrides",
]
