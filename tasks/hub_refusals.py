"""What huggingface_hub raises, as input that a user can mend: one line that says what to do."""

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from moeprune.errors import BadInput

CACHE_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class HubUnavailable(BadInput):
    """The Hub cannot be reached, fails or limits requests: the same request may succeed later."""


def endpoint() -> str:
    """The Hub's address without a password."""
    from huggingface_hub.constants import ENDPOINT

    parts = urlsplit(ENDPOINT)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def refusals(repository: str, revision: str | None) -> Iterator[None]:
    """Turn what huggingface_hub raises into BadInput that says what to do; what it is not the cause of is let through.

    Raises HubUnavailable where only waiting helps.
    """
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        if (refusal := _refusal(error, repository, revision)) is None:
            raise
        raise refusal from error


def is_of_xet(error: Exception) -> bool:
    """Whether hf_xet raised it. That is compiled code, without frames: the last is what in huggingface_hub calls it."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and "xet" in f"{frames[-1].f_globals.get('__name__')}.{frames[-1].f_code.co_name}"


def _refusal(error: Exception, repository: str, revision: str | None) -> BadInput | None:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # why the Hub did not give it, not that it is not here either
    name, status = type(error).__name__, error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    log_in = "log in (hf auth login, or set HF_TOKEN)"
    if isinstance(error, GatedRepoError):
        return BadInput(
            f"download.source: {repository} is gated and the Hub gives its files only to whom it has granted access "
            f"({status}): ask for access at {endpoint()}/{repository}, then {log_in}"
        )
    if isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | EntryNotFoundError | HFValidationError):
        return BadInput(
            f"download.source: the Hub does not give out {repository} at revision {revision} ({name}): check the name "
            f"and revision, and {log_in} if it is private"
        )
    if status in (401, 403):
        return BadInput(
            f"download.source: the Hub refuses {repository} to the token it was sent ({status}): the token is not "
            f"valid or may not read it; {log_in} with another one"
        )
    if isinstance(error, OfflineModeIsEnabled):
        return HubUnavailable(
            f"download.source: HF_HUB_OFFLINE is set and {repository} is not complete in {constants.HF_HUB_CACHE}: "
            "unset it, or bring the files there"
        )
    if status == 429:
        return HubUnavailable(
            f"download.source: the Hub limits the number of requests (429) for {repository}: run again in some "
            f"minutes, and {log_in}, which allows more"
        )
    if status >= 500:
        return HubUnavailable(
            f"download.source: the Hub at {endpoint()} fails ({status}) to give out {repository}: run again later, "
            "whole files are kept"
        )
    if type(error) is RuntimeError and is_of_xet(error):  # its text may hold signed addresses
        return HubUnavailable(
            f"download.source: the Xet storage that the Hub keeps {repository} in does not give it: run again later, "
            "or set HF_HUB_DISABLE_XET=1 to fetch it over plain HTTP"
        )
    # The library's errors of connection are those of httpx or httpx2, whichever it is built on.
    if isinstance(error, ConnectionError) or type(error).__module__.startswith(("httpx", "httpcore")):
        return HubUnavailable(
            f"download.source: the Hub at {endpoint()} cannot be reached ({name}): check the path or the connection"
        )
    if isinstance(error, OSError) and error.errno in CACHE_FAULTS:
        return BadInput(
            f"download.source: {constants.HF_HUB_CACHE} cannot take the files ({os.strerror(error.errno)}): free some "
            "space, or set HF_HOME to a folder where you may write"
        )
    if isinstance(error, OSError) and error.errno is None:  # the library's check of sizes
        reason = str(error).partition("\n")[0]
        return HubUnavailable(
            f"download.source: what came of {repository} is not whole: {reason}; run again to fetch it anew"
        )
    return None
