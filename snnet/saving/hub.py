"""Saved nets on the Hugging Face Hub: found, fetched and uploaded as folders, with the functions of huggingface_hub.

Its ModelHubMixin is not used: it defines its own config.json, does not write it atomically, and hooks into `__init__`.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import SnnetError, reason_of
from .file_names import CARD, FILES, OWN, PICTURE, STATISTICS

_ID = re.compile(r'(?P<repo>[\w.-]+/[\w.-]+)(?:@(?P<revision>\S+))?', re.ASCII)

_FILE_SUFFIXES = ('.pth', '.pt', '.bin', '.ckpt', '.safetensors', '.tar', '.pkl', '.npz', '.json', '.onnx', '.pt2')
"""Ends of the names of files; a repository of such a name would have to be cloned into a folder first."""


def locate(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """The local folder of a saved net: a folder as it is, or what the Hub has under a repository id.

    What is in the cache is not fetched again; without a network, or with HF_HUB_OFFLINE=1, only the cache is used.

    Args:
        name: a folder, which takes precedence, or OWNER/NAME or OWNER/NAME@REVISION on the Hub.
        revision: branch, tag or commit on the Hub; the main branch by default.
        cache_dir: where fetched files are kept; by default as HF_HOME says.
        token: for the Hub; by default the one from `hf auth login` or HF_TOKEN.
        local_files_only: look only into the cache.
        force_download: fetch files again although they are in the cache.

    Raises:
        SnnetError: neither a folder nor a repository id, or a repository that cannot be fetched.
    """
    if not isinstance(name, str | os.PathLike):
        raise SnnetError(f'a saved net is a folder, or OWNER/NAME on the Hub, but {name!r} was given')
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        convert = f"snnet.load_official('{name}').save_pretrained('{Path(name).with_suffix('')}')"
        raise SnnetError(
            f"'{name}' is a file, but a saved net is a folder; a published checkpoint becomes one "
            f'with python -c "import snnet; {convert}"'
        )
    match = _ID.fullmatch(str(name))
    if Path(name).suffix.lower() in _FILE_SUFFIXES:
        raise SnnetError(f"there is no file '{name}'")
    if match is None:
        raise SnnetError(
            f"there is no folder '{name}', and a repository id on the Hub reads OWNER/NAME or OWNER/NAME@REVISION"
        )
    if revision is not None and match['revision'] not in (None, revision):
        raise SnnetError(f"'{name}' names another revision than revision='{revision}'")
    from huggingface_hub import snapshot_download

    repo_id, revision = match['repo'], revision or match['revision']
    with _explained(repo_id, revision, f"there is no folder '{name}', and "):
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=list(FILES),
            )
        )


def fetch_card(repo_id: str, folder: Path, *, revision: str | None = None, token: str | bool | None = None) -> None:
    """Puts the model card of a repository into a folder, where there is one.

    Raises:
        SnnetError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    with _explained(repo_id, revision):
        try:
            shutil.copy(hf_hub_download(repo_id, CARD, revision=revision, token=token), folder / CARD)
        except LocalEntryNotFoundError:
            raise
        except (EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            return  # the upload creates what is missing, or refuses


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Uploads the folder of a saved net, with the tables of `profiles/` where it has some.

    Args:
        folder: of the net.
        repo_id: OWNER/NAME; created where it is missing.
        commit_message: of the commit.
        private: whether a new repository is private.
        token: for the Hub.
        revision: branch, created where it is missing.
        create_pr: propose the commit as a pull request instead.

    Returns:
        The address of the commit, or of the pull request.

    Raises:
        SnnetError: the Hub refuses or cannot be reached, or both a branch and a pull request were asked for.
    """
    from huggingface_hub import HfApi

    if create_pr and revision is not None:
        raise SnnetError(f"a pull request goes to the main branch, so revision='{revision}' cannot be combined with it")
    api = HfApi(token=token)
    with _explained(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None and not revision.startswith('refs/'):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
            allow_patterns=list(FILES),
            delete_patterns=[STATISTICS, OWN, PICTURE],  # of an earlier net; what the folder holds is kept
        )
    return commit.pr_url or commit.commit_url


@contextmanager
def _explained(repo_id: str, revision: str | None, before: str = '') -> Iterator[None]:
    """Turns errors of the library into one sentence."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        yield
    except HFValidationError as error:
        raise SnnetError(f"{before}'{repo_id}' is not a valid repository id on the Hub: {reason_of(error)}") from None
    except LocalEntryNotFoundError as error:  # says what kept it from the hub
        reason = _reason(error.__cause__, repo_id, revision)
        raise SnnetError(f'{before}{repo_id} is not in the cache of the Hub, and {reason}') from None
    except Exception as error:  # of the Hub, or of whichever library makes the requests
        raise SnnetError(before + _reason(error, repo_id, revision)) from error


def _reason(error: BaseException | None, repo_id: str, revision: str | None) -> str:
    """Why nothing comes from the Hub, as a clause."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f'{repo_id} on the Hub is gated: ask for access on its page, then log in (hf auth login)'
    if isinstance(error, errors.RepositoryNotFoundError):
        return f'the Hub has no repository {repo_id}, or a private one (then log in: hf auth login, or HF_TOKEN)'
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id} on the Hub has no revision '{revision}'"
    if isinstance(error, errors.HfHubHTTPError):
        denied = getattr(error.response, 'status_code', None) in (401, 403)
        return f'the Hub refuses: {reason_of(error)}{" (log in: hf auth login, or HF_TOKEN)" if denied else ""}'
    if constants.HF_HUB_OFFLINE:
        return 'HF_HUB_OFFLINE is set'
    if error is None:
        return 'only the cache was asked'
    what = reason_of(error) if isinstance(error, Exception) else error
    return f'the Hub at {constants.ENDPOINT} cannot be reached: {what}'
