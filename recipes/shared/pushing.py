"""`mmrl export RUN --push-to-hub OWNER/NAME`: the exported folder as a model repository of the Hugging Face hub.

    target = opened(name, public)     before anything is written: name, token, network, and what lies there already
    target.send(folder)               one commit with all files, or none

A repository is made private unless `--public` is given, and nothing that lies in one is overwritten.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

FLAG = "--push-to-hub"
OWN_FILES = {".gitattributes"}
"""What the hub itself puts into a new repository."""


@dataclass(frozen=True)
class Target:
    """A repository that takes a model. Made by `opened`."""

    name: str
    """OWNER/NAME."""
    public: bool
    api: Any
    """`huggingface_hub.HfApi`."""
    there: bool
    """Was it there already, empty?"""

    def send(self, folder: Path) -> str:
        """Send a folder's files in one commit; the address of the repository. Raises ValueError."""
        try:
            if not self.there:
                self.api.create_repo(self.name, private=not self.public)
            self.api.upload_folder(
                repo_id=self.name, folder_path=folder, commit_message="Model trained with mmrl"
            )
        except Exception as error:
            visible = "" if self.public else " --private"
            raise ValueError(
                f"{_why(self.name, error)} The model itself is whole in {folder}; send it later with "
                f"`hf upload {self.name} {folder} .{visible}`."
            ) from error
        return f"{self.api.endpoint}/{self.name}"


def opened(name: str, public: bool) -> Target:
    """The repository `name`, if this computer may write a model there. Raises ValueError."""
    import huggingface_hub as hub
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        well_named = name.count("/") == 1
    except ValueError:
        well_named = False
    if not well_named:
        raise ValueError(
            f"{FLAG} is {name!r}; it must be OWNER/NAME, of letters, digits, '-', '_' and '.', for example me/papo-7b."
        )
    if hub.is_offline_mode():
        raise ValueError(
            f"{FLAG} {name} needs the network, but HF_HUB_OFFLINE is set; unset it, or leave {FLAG} out."
        )
    if not hub.get_token():
        raise ValueError(
            f"{FLAG} {name} needs a token that may write: run `hf auth login`, or set HF_TOKEN."
        )
    api = hub.HfApi()
    return Target(name, public, api, _is_there(api, name, public))


def _is_there(api: Any, name: str, public: bool) -> bool:
    """Is there a repository that takes the model? Raises ValueError for one that must not."""
    try:
        # Asked even when there is none: a token that is not valid should not cost the export.
        api.whoami()
        if not api.repo_exists(name):
            return False
        info = api.model_info(name)
    except Exception as error:
        raise ValueError(_why(name, error)) from error
    files = sorted({file.rfilename for file in info.siblings or ()} - OWN_FILES)
    if files:
        raise ValueError(
            f"{FLAG} {name} has {len(files)} files already ({', '.join(files[:3])}); name a repository that is not "
            "there or is empty, nothing is overwritten."
        )
    if info.private == public:
        kind, flag = ("private", "leave --public out") if public else ("public", "add --public")
        raise ValueError(
            f"{FLAG} {name} is there, empty and {kind}; {flag}, or change it on the hub, or name another."
        )
    return True


def _why(name: str, error: Exception) -> str:
    """What went wrong and what to do, in one or two sentences."""
    # The hub's errors are those of whichever HTTP library its version uses: only the status is the same in all.
    status = getattr(getattr(error, "response", None), "status_code", None)
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if status in (401, 403):
        owner = name.partition("/")[0]
        return (
            f"{FLAG} {name}: the hub refuses ({status}: {first}). Take a token with the right to write to {owner!r}: "
            "`hf auth login`, or HF_TOKEN."
        )
    return f"{FLAG} {name}: the hub was not reached or did not take it ({type(error).__name__}: {first})."
