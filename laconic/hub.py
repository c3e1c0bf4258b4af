"""Check that the Hugging Face hub is reachable before files are downloaded from it.

Without a network, huggingface_hub retries the request of every missing file with growing delays, and then reports a
missing file. A single request beforehand distinguishes a missing network from a missing file.
"""

from typing import Literal

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from laconic.errors import reason_of

ANYTHING = "README.md"
"""The file that is requested. The repository need not contain it; any answer shows that the hub is reachable."""
_BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP status codes after which the request is repeated."""


def out_of_reach(
    repository: str, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> str | None:
    """The reason why the hub cannot be reached; None if it answers, even if the repository does not exist.

    A missing network is detected at once, and a server that does not answer after HF_HUB_ETAG_TIMEOUT (10 seconds by
    default). The request is repeated if the server is busy.

    Args:
        repository: `name` or `owner/name`.
        kind: whether it is a repository of a model or of a data set.
        revision: the branch, tag or commit; None for the default branch.

    Example:
        >>> out_of_reach("gpt2")  # where HF_HUB_OFFLINE=1
        'HF_HUB_OFFLINE is set, so that it is not asked'
    """
    url = hf_hub_url(repository, ANYTHING, repo_type=kind, revision=revision)
    try:
        _ask(url)
    except OfflineModeIsEnabled:
        return "HF_HUB_OFFLINE is set, so that it is not asked"
    except HfHubHTTPError as error:
        # Other errors, such as a missing repository, are reported by the download itself.
        return f"{constants.ENDPOINT} says: {reason_of(error)}" if error.response.status_code in _BUSY else None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{constants.ENDPOINT} cannot be reached: {reason_of(error)}"
    return None


def _ask(url: str) -> None:
    try:
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HfHubHTTPError as error:
        if error.response.status_code not in _BUSY:
            raise
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT, retry_on_errors=True)
