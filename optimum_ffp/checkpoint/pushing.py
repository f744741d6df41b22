"""Upload of a result that no folder holds yet."""

import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

from ..errors import FFPError
from ..hub.upload import check_push, push_folder
from ..utils import processes


class PushToHubMixin(ABC):
    """Gives a class that can write its last result `push_to_hub`."""

    @abstractmethod
    def _writer(self) -> Callable[[Path], Path]:
        """What writes the last result as a checkpoint, given the folder. Raises `FFPError` if there is no result."""

    def push_to_hub(
        self,
        repo_id: str,
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Uploads the last result to the Hub in one commit.

        Of several processes, which all call this, the main one uploads it.

        Args:
            repo_id: `name` or `owner/name`; created if it does not exist, unless a pull request is opened.
            private: Whether the repository is private if it is created.
            token: Access token for the Hub; the one stored by `hf auth login` if `None`.
            revision: Branch to commit to, created if it does not exist; the main branch if `None`.
            commit_message: Message of the commit, and title of a pull request.
            create_pr: Whether to open a pull request with the commit, in a repository that exists.

        Returns:
            URL of the commit, or of the pull request.

        Raises:
            FFPError: If there is no result, or the upload fails.
        """

        def push() -> str:
            write = self._writer()
            check_push(repo_id, token)
            parent = Path(tempfile.mkdtemp(prefix="optimum-ffp-"))
            folder = write(parent / repo_id.rpartition("/")[2])
            try:
                address = push_folder(folder, repo_id, private, token, revision, commit_message, create_pr)
            except FFPError as error:
                # Not removed: it may be the only copy of the result.
                if str(folder) in str(error):
                    raise
                raise FFPError(f"{error}; the checkpoint is in {folder}") from None
            shutil.rmtree(parent)
            return address

        return processes.on_main(push)
