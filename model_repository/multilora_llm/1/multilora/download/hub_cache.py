"""HubCache: an adapter repository in huggingface_hub's cache, in the layout that its tools read.

    models--org--name/refs/<revision>            the commit it stood for when last asked
                      blobs/<etag>               files by content; <etag>.incomplete: still arriving
                      snapshots/<commit>/<file>  a link to the blob
                      .no_exist/<commit>/<file>  the commit has no such file

huggingface_hub 2.4 forgets what arrived of a file when its download ends early; a download of this
package goes on from the .incomplete file.
"""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name

from multilora.adapters.files import CONFIG_FILE, FILES, missing_weights, needed_files, on_disk
from multilora.download.partial_file import PartialFile, write_atomically
from multilora.download.transfer import Interrupted

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILE_NAME = re.compile(r"\w[\w.-]{0,127}")
_REVISION = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*")


class HubCache:
    """The cached versions of one repository, as far as an adapter needs them."""

    def __init__(self, repo_id: str) -> None:
        root = Path(constants.HF_HUB_CACHE)
        name = repo_folder_name(repo_id=repo_id, repo_type="model")
        self.folder = root / name
        self.lock = root / ".locks" / name / "multilora.lock"

    def commit(self, revision: str) -> str | None:
        """The commit that `revision`, a branch, tag or commit, stood for when last asked."""
        if is_commit(revision):
            return revision
        with contextlib.suppress(OSError):
            commit = (self.folder / "refs" / revision).read_text().strip()
            return commit if is_commit(commit) else None
        return None

    def snapshot(self, commit: str) -> Path:
        return self.folder / "snapshots" / commit

    def has(self, commit: str, name: str) -> bool:
        return (self.snapshot(commit) / name).is_file()

    def is_usable(self, commit: str) -> bool:
        folder = self.snapshot(commit)
        names = [name for name in needed_files(folder) if self.has(commit, name)]
        return CONFIG_FILE in names and not missing_weights(names)

    def is_complete(self, commit: str) -> bool:
        """Each file of the adapter is here or known not to exist."""
        absent = self.folder / ".no_exist" / commit
        return self.is_usable(commit) and all(
            self.has(commit, name) or (absent / name).exists() for name in FILES
        )

    def blob(self, etag: str) -> Path:
        if not _FILE_NAME.fullmatch(etag):
            raise Interrupted(f"the Hub names a file by {etag!r}, no etag; check HF_ENDPOINT")
        return self.folder / "blobs" / etag

    def partial(self, etag: str) -> Path:
        return self.blob(etag).with_name(f"{etag}.incomplete")

    def is_intact(self, partial: PartialFile, etag: str) -> bool:
        with on_disk(self.folder):
            return _matches(partial.path, partial.size, etag)

    def add_blob(self, partial: PartialFile, etag: str) -> None:
        """Take the whole file in `partial`, provided that it is what its etag says."""
        if not self.is_intact(partial, etag):
            partial.restart()
            raise Interrupted("a file arrived damaged: its hash is not the Hub's; try again")
        with on_disk(self.folder):
            partial.path.replace(self.blob(etag))

    def link(self, commit: str, name: str, etag: str) -> None:
        """Make the blob `etag` the file `name` of `commit`."""
        pointer = self.snapshot(commit) / name
        with on_disk(self.folder):
            pointer.parent.mkdir(parents=True, exist_ok=True)
            target = os.path.relpath(self.blob(etag), pointer.parent)
            draft = pointer.with_name(f".{pointer.name}.{os.getpid()}.tmp")
            draft.unlink(missing_ok=True)
            try:
                try:
                    draft.symlink_to(target)
                except OSError:  # a file system without symbolic links
                    shutil.copyfile(self.blob(etag), draft)
                draft.replace(pointer)
            finally:
                draft.unlink(missing_ok=True)

    def note_absent(self, commit: str, names: Iterable[str]) -> None:
        folder = self.folder / ".no_exist" / commit
        for name in names:
            if not (folder / name).exists():
                write_atomically(folder / name, "")

    def note_commit(self, revision: str, commit: str) -> None:
        if revision != commit and self.commit(revision) != commit:
            write_atomically(self.folder / "refs" / revision, commit)


def is_commit(text: str) -> bool:
    return _COMMIT.fullmatch(text) is not None


def is_revision(text: str) -> bool:
    """A name that git allows for a branch or tag and that stays below refs/."""
    return _REVISION.fullmatch(text) is not None and ".." not in text


def _matches(path: Path, size: int, etag: str) -> bool:
    """An etag of the Hub is a SHA-256 (LFS) or a git blob's SHA-1; others say nothing."""
    if re.fullmatch(r"[0-9a-f]{64}", etag):
        digest = hashlib.sha256()
    elif re.fullmatch(r"[0-9a-f]{40}", etag):
        digest = hashlib.sha1(b"blob %d\0" % size)
    else:
        return True
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest() == etag
