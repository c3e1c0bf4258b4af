"""Whether the Hugging Face hub answers for a repository: asked once, before a library asks for file after file.

huggingface_hub asks again and again, with longer and longer waits, for each file that is not on this machine, and a
missing network looks to it like a missing file. One question with one answer tells the two apart.
"""

from typing import Literal

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import httpx

from laconic.errors import reason_of

ANYTHING = "README.md"
"""A file to ask for. A repository answers whether it has the file or not."""
_BUSY = (408, 429, 500, 502, 503, 504)
"""HTTP status codes of servers that are worth another try."""


def out_of_reach(
    repository: str, kind: Literal["model", "dataset"] = "model", revision: str | None = None
) -> str | None:
    """Why the hub cannot be asked for the `repository`; None where it answers, be it that it has no such thing.

    A missing network is noticed at once, a silent one after HF_HUB_ETAG_TIMEOUT (10 seconds by default). A server that
    is busy is asked again.

    Args:
        repository: `name` or `owner/name`.
        kind: what it is a repository of.
        revision: the branch, tag or commit; the hub's default where None.

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
        # Anything else, as that there is no such repository, is told by whatever asks for a file.
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
