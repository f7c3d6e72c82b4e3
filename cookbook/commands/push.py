"""Upload an exported model to the Hub, private unless told otherwise.

`python -m cookbook.commands.push RUN --repo me/name` is what `make push` calls. The token comes
from `hf auth login` or HF_TOKEN, and is written nowhere.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (  # type: ignore[attr-defined]
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
)
from huggingface_hub.utils import logging, validate_repo_id  # type: ignore[attr-defined]

from cookbook.offline.errors import OfflineError
from cookbook.paths import as_typed, start_command
from cookbook.profiles import CookbookError
from cookbook.serving import exporting, goingout, runs
from cookbook.serving.merging import quiet

_LEFT_OUT = [exporting.RECORD]  # of use on this machine alone


def push(run: runs.Run, repo: str, form: str, quants: tuple[str, ...], public: bool) -> str:
    """Upload a run's export, made first where it is not there, and return its page's address.

    Raises `CookbookError` for a name that the Hub does not take, without a login, where a file
    holds a token, and for what the Hub refuses.
    """
    try:
        validate_repo_id(repo)
        named = repo.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise CookbookError(f"REPO={repo!r} is no name on the Hub: name one as owner/name.")
    if constants.HF_HUB_OFFLINE:
        raise CookbookError("HF_HUB_OFFLINE is set: unset it, and run this again.")
    if not get_token():
        raise CookbookError(
            "There is no login to upload with. Make a token that may write at the Hub's settings "
            "page, then `.venv/bin/hf auth login`, or set HF_TOKEN for this one command."
        )
    made = exporting.export(run, form, quants)
    for export in made:
        _refuse_secrets(export.folder)
    try:
        return _upload([one.folder for one in made], repo, public)
    except CookbookError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise CookbookError(_reason(error, repo)) from error


def _upload(folders: Sequence[Path], repo: str, public: bool) -> str:
    api = HfApi()
    api.create_repo(repo, private=not public, exist_ok=True)
    if not public and not api.model_info(repo).private:
        raise CookbookError(
            f"{repo} is there already, and public: nothing was uploaded. Add PUBLIC=1 if everybody "
            "may see it, or name another."
        )
    left_out = list(_LEFT_OUT)
    for folder in folders:
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            ignore_patterns=[*left_out],  # the library adds to the list
            commit_message=f"Add {folder.name}",
        )
        # Of several GGUF files the first one's card and Modelfile stay.
        left_out += ["README.md", "Modelfile"]
    there = set(api.list_repo_files(repo))
    wanted = {
        path.relative_to(folder).as_posix()
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and path.name not in _LEFT_OUT
    }
    if missing := wanted - there:
        raise CookbookError(f"The Hub has not got {', '.join(sorted(missing))}: run this again.")
    return f"{api.endpoint}/{repo}"


def _refuse_secrets(folder: Path) -> None:
    own = str(get_token()).encode()
    for path, text in goingout.heads(folder):
        if goingout.holds_token(text, own):
            raise CookbookError(
                f"{as_typed(path)} holds an access token or a private key: nothing was uploaded. "
                "Take it out of the data or the chat template that it came from, and revoke it."
            )


def _words(error: Exception) -> str:
    """Return what an error says as one line, without the token."""
    said = " ".join(str(error).split()).replace(str(get_token()), "...")
    return said if len(said) < 300 else said[:300] + "..."


def _reason(error: Exception, repo: str) -> str:
    """Return why an upload failed; the library wraps what happened to a file in a RuntimeError."""
    refused = next((e for e in (error, error.__cause__) if isinstance(e, HfHubHTTPError)), None)
    if isinstance(error, ValueError) and not isinstance(error, HfHubHTTPError):
        return f"The Hub refuses the model card: {_words(error)}"  # whose head it reads first
    if refused is None:
        found = error.__cause__ if type(error) is RuntimeError else error
        return (
            f"The Hub cannot be reached ({type(found).__name__}), and nothing of {repo} is known "
            "to be whole. Check the network and run this again: what was uploaded is kept."
        )
    status = refused.response.status_code if refused.response is not None else 0
    said = {
        401: "The Hub does not know the token: make a new one and `.venv/bin/hf auth login`.",
        403: f"The token may not write to {repo}: take one that may, or another owner's name.",
        413: "A file is larger than the Hub takes.",
        429: "The Hub takes no more requests for now (429): wait some minutes.",
    }
    if status in said:
        return said[status]
    if 400 <= status < 500:  # the Hub's own reason, which waiting does not mend
        return f"The Hub refuses the upload ({status}): {refused.server_message or _words(error)}"
    return f"The Hub has a fault of its own ({status}). Run this again in some minutes."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", default="", help="the folder of a finished run")
    parser.add_argument("--repo", default="", help="owner/name on the Hub")
    parser.add_argument("--format", default="", help=", ".join(exporting.FORMATS))
    parser.add_argument("--quant", default="q8_0")
    parser.add_argument("--public", action="store_true")
    options = parser.parse_args(arguments)
    start_command()
    quiet()
    # Of requests that are made again, with addresses that let anybody upload.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    quants = exporting.quants_of(options.quant)
    try:
        run = runs.find(options.run)
        form = options.format.lower() or ("adapter" if run.adapter else "safetensors")
        address = push(run, options.repo, form, quants, options.public)
    except (CookbookError, OfflineError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(f"{address} ({'public' if options.public else 'private'}): {form} of {run.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
