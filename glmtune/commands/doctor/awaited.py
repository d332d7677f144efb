"""What an earlier recipe makes is no fault of a later one: it is awaited."""

from __future__ import annotations

from pathlib import Path

from glmtune.commands.doctor.checks import AwaitedError
from glmtune.config import read_yaml
from glmtune.resolution import ResolvedModel
from glmtune.runtime import UserError


def check_awaited(model: ResolvedModel, path: str) -> None:
    """See whether a path is one that is made where runs are written, before this recipe is trained.

    Args:
        model: whose recipe names the path and, in `training.output_dir`, where its own run goes.
        path: of a checkpoint or a file.

    Raises:
        AwaitedError: it is, and nothing is there yet; says what makes it.
    """
    own = model.recipe.training.output_dir
    if not model.is_recipe or model.target is None or own is None or Path(path).exists():
        return
    if Path(own).parent in Path(path).parents:
        makers = [str(recipe) for recipe in sorted(Path(model.target).parent.glob("*.yaml")) if makes(recipe, path)]
        first = f"glmtune train {makers[0]}" if makers else f"the comment in {model.target} may say what makes it"
        raise AwaitedError(f"{path} is not there yet. First: {first}")


def makes(recipe: Path, path: str) -> bool:
    """Return whether a recipe's run folder holds a path."""
    try:
        folder = (read_yaml(recipe).get("training") or {}).get("output_dir")
    except UserError:
        return False
    return folder is not None and Path(folder) in Path(path).parents
