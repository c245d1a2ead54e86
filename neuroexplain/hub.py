"""Upload an exported folder to the Hugging Face hub, as the files of a data set.

All that speaks to the hub is here. What the hub answers becomes one message that says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuroexplain.errors import NeuroexplainError
from neuroexplain.runtime.progress import Progress
from neuroexplain.store.rows import chunks

if TYPE_CHECKING:
    from huggingface_hub import HfApi

OLD_FILE = re.compile(r"[a-z]+/[a-z0-9-]+\.parquet")  # the files of a table, which all readers join
AT_ONCE = 8  # files of one request: what is uploaded is kept by the hub, also if the next request fails
LOGIN = "Log in:  hf auth login   (or set HF_TOKEN to a token with the right to write)"
TOKENS = "Make one with the right to write: https://huggingface.co/settings/tokens"
AGAIN = "What was uploaded is kept: the same command goes on."


@dataclass(frozen=True, slots=True)
class HubDataSet:
    """A data set on the hub to which the user may write."""

    api: HfApi
    name: str  # with its namespace
    is_private: bool
    old_files: frozenset[str]  # of an earlier upload

    @property
    def address(self) -> str:
        return f"{self.api.endpoint}/datasets/{self.name}"

    def upload(self, files: Mapping[str, Path | bytes]) -> Generator[Progress]:
        """Put these files, by their path, in place of those of an earlier upload, in one commit.

        Large files go first, in several requests, so an upload that was interrupted can go on.
        Until the commit the data set is as before. Raises NeuroexplainError if the hub refuses.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # of single files; ours counts them
        with _readable_errors(self.name):
            additions = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
            done = 0
            yield Progress("uploading", done, len(additions), "files")
            for batch in chunks(additions, AT_ONCE):
                self.api.preupload_lfs_files(self.name, batch, repo_type="dataset")
                done += len(batch)
                yield Progress("uploading", done, len(additions), "files")
            gone = [CommitOperationDelete(path) for path in sorted(self.old_files - files.keys())]
            self.api.create_commit(
                self.name,
                [*additions, *gone],
                commit_message="Data set written by neuroexplain",
                repo_type="dataset",
            )


def open_data_set(name: str, is_private: bool | None) -> HubDataSet:
    """The data set `name` (or NAMESPACE/NAME) of the user who is logged in; a new one if there is none.

    is_private: None makes a new one private, and takes one that exists as it is. Raises NeuroexplainError
    without a token that may write there, without a network, and if the name is taken by something else than
    an earlier upload, or by one whose visibility is not the one asked for.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise NeuroexplainError(
            f"{name!r} cannot be a name on the hub ({error}). Write NAME or NAMESPACE/NAME."
        ) from error
    if get_token() is None:
        raise NeuroexplainError(f"There is no token for the Hugging Face hub.\n{LOGIN}\n{TOKENS}")
    api = HfApi(library_name="neuroexplain")
    with _readable_errors(name):
        user = api.whoami()["name"]
        full_name = name if "/" in name else f"{user}/{name}"
        private = is_private is not False
        api.create_repo(full_name, repo_type="dataset", private=private, exist_ok=True)
        # Says before a long export whether one may write there.
        api.preupload_lfs_files(full_name, [CommitOperationAdd("README.md", b"#")], repo_type="dataset")
        about: Any = api.repo_info(full_name, repo_type="dataset")
        stored = {file.rfilename for file in about.siblings or ()}
    foreign = stored - {".gitattributes", "README.md"}  # a new data set may have these
    if foreign and "run.json" not in stored:
        raise NeuroexplainError(
            f"{full_name} exists already and is no export of neuroexplain: it holds {min(foreign)}. "
            "Nothing was changed. Give another name."
        )
    if is_private is not None and bool(about.private) != is_private:
        now = "private" if about.private else "public"
        raise NeuroexplainError(
            f"{full_name} exists already and is {now}. Nothing was changed. Change that at "
            f"{api.endpoint}/datasets/{full_name}/settings, or leave out --private and --public."
        )
    return HubDataSet(api, full_name, bool(about.private), frozenset(filter(OLD_FILE.fullmatch, stored)))


@contextmanager
def _readable_errors(name: str) -> Iterator[None]:
    """Raises NeuroexplainError in place of the library's errors."""
    # Of httpx or httpx2: versions of the library differ.
    from huggingface_hub.errors import (  # type: ignore[attr-defined]
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except HfHubHTTPError as error:
        raise NeuroexplainError(_refusal(name, error)) from error
    except OfflineModeIsEnabled as error:
        raise NeuroexplainError(
            "HF_HUB_OFFLINE is set, so nothing can be uploaded. Unset it, and repeat the command."
        ) from error
    except (HTTPError, OSError) as error:
        raise NeuroexplainError(_unreachable(error)) from error
    except (RuntimeError, ValueError) as error:  # the upload of a file failed, or an answer is malformed
        cause = error.__cause__
        if isinstance(cause, HfHubHTTPError):
            raise NeuroexplainError(_refusal(name, cause)) from error
        raise NeuroexplainError(_unreachable(cause or error)) from error


def _unreachable(error: BaseException) -> str:
    return (
        f"The Hugging Face hub cannot be reached, or answers what it should not ({error}). Look at the "
        f"network, HF_ENDPOINT and the proxy, and repeat the command. {AGAIN}"
    )


def _refusal(name: str, error: Any) -> str:
    """What the hub's refusal means, and what to do."""
    status = error.response.status_code
    namespace = name.partition("/")[0] if "/" in name else "your namespace"
    reason = f"The hub answers {status}: {error.server_message or error.response.reason_phrase}."
    if status == 401:
        return f"The Hugging Face hub refuses the token. {reason}\n{LOGIN}\n{TOKENS}"
    if status == 403:
        return (
            f"You may not write to {name}. {reason} The token needs the right to write in {namespace}, and "
            f"you need it too; or give another name.\n{TOKENS}"
        )
    if status == 404:
        return (
            f"There is no {name} that you can see. {reason} Is {namespace} your user name or an organization "
            "of yours?  hf auth whoami"
        )
    if status in (409, 412):
        return f"{name} is taken or being changed. {reason} Repeat the command, or give another name."
    if status == 429 or status >= 500:
        return f"The hub cannot do it now. {reason} Repeat the command later. {AGAIN}"
    return f"The hub does not take {name}. {reason}"
