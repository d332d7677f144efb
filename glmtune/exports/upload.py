"""An export goes to the hub: its files as they lie on the disk, nothing else."""

from __future__ import annotations

from pathlib import Path

from glmtune import network
from glmtune.exports.destination import CARD, MODELFILE, RECORD, besides
from glmtune.runtime import UserError
from glmtune.terminal import say


def upload(place: Path, repository: str) -> None:
    """Upload an export to the hub, as a private repository if there is none of that name.

    Raises:
        UserError: the hub refuses.
    """
    from huggingface_hub import HfApi

    network.withhold_telemetry()
    say(f"Sending {place} to {repository} at {network.host()}, named by you.", error=True)
    hub = HfApi()
    try:
        hub.create_repo(repository, private=True, exist_ok=True)
        if place.is_dir():
            hub.upload_folder(repo_id=repository, folder_path=str(place))
        else:
            for file, name in (
                (place, place.name),
                *zip(besides(place), (RECORD, CARD, MODELFILE), strict=True),
            ):
                hub.upload_file(repo_id=repository, path_or_fileobj=str(file), path_in_repo=name)
    except Exception as error:  # of the hub, of the network, of the disk
        raise UserError(
            f"--push-to-hub {repository}: the hub refuses: {error}. The export itself is in {place}; log in with "
            "`hf auth login`, or upload it later with `hf upload`."
        ) from error
