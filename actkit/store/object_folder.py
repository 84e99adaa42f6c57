"""A folder in an object store, with the methods of :class:`~actkit.store.folders.Folder`."""

import errno
import hashlib
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import IO, Any, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

from ..errors import Fault, InputError
from ..object_urls import checked_url
from .object_clients import StorageOptions, endpoint_name, open_store, secrets

SINGLE_BYTES = 64 * 2**20  # larger objects are stored in parts
_PART_BYTES = 32 * 2**20
READ_PATIENCE, WRITE_PATIENCE = 30.0, 600.0  # seconds
_LONGEST_WAIT = 15.0
_STATUS = re.compile(r"status code: (\d{3})")
_TRANSIENT = ("408", "409", "412", "425", "429")
_COMMITS = re.compile(r"(.*/)?committed/(receipt\.\d+\.json|c\.\d+)")


class Entry(NamedTuple):
    """Size in bytes and entity tag of an object."""

    size: int
    tag: str


class ObjectFolder:
    """A folder in an object store: all objects whose keys begin with one prefix.

    Parameters
    ----------
    url
        ``s3://bucket/path``, ``gs://…`` or ``az://…``.
    options
        Options of obstore, such as ``endpoint``; credentials come from the environment.
    patience
        Seconds for which requests are repeated while the server is away or busy.

    Notes
    -----
    Errors are OSErrors that name the object and never repeat a credential. There are no locks: objects that
    must not be replaced are created under the condition that they do not exist.
    """

    def __init__(
        self, url: str, options: StorageOptions | None = None, *, patience: float = READ_PATIENCE
    ) -> None:
        self.url = checked_url(url)
        self._options = dict(options or {})
        self._patience = patience
        self._prefix = urlsplit(self.url).path.strip("/")
        self._store = open_store(self.url, self._options, patience=patience)
        self._process = os.getpid()

    def __str__(self) -> str:
        return self.url

    def __repr__(self) -> str:
        return f"ObjectFolder({self.url!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.url, self._options, self._patience)

    def __truediv__(self, name: str) -> "ObjectFolder":
        """Return a folder in this one."""
        folder: ObjectFolder = object.__new__(ObjectFolder)
        folder.__dict__.update(self.__dict__)
        folder.url, folder._prefix = f"{self.url}/{name}", f"{self._prefix}/{name}"
        return folder

    @property
    def parent(self) -> "ObjectFolder":
        """The folder that contains this one."""
        folder: ObjectFolder = object.__new__(ObjectFolder)
        folder.__dict__.update(self.__dict__)
        folder.url, folder._prefix = self.url.rpartition("/")[0], self._prefix.rpartition("/")[0]
        return folder

    # reading

    def get(self, name: str, start: int = 0, stop: int | None = None, *, tag: str = "") -> bytes:
        """Return the bytes ``[start, stop)`` of an object.

        Parameters
        ----------
        name
            Its key in the folder.
        start, stop
            Range of bytes; all of them by default.
        tag
            Entity tag that the object must have.

        Raises
        ------
        OSError
            If the object is missing, was replaced or cannot be read.
        """
        options: dict[str, Any] = {"range": (start, stop)} if stop is not None else {}
        if tag:
            options["if_match"] = tag
        with self._requests(name) as obstore:
            return bytes(obstore.get(self._store, self._key(name), options=options).bytes())

    def read(self, name: str, limit: int) -> bytes | None:
        """Return up to `limit` bytes of an object, all if it is -1; None if there is no such object."""
        try:
            content = self.get(name)
        except FileNotFoundError:
            return None
        return content if limit < 0 else content[:limit]

    def entry(self, name: str) -> Entry | None:
        """Return the size and the tag of an object; None if there is none."""
        try:
            with self._requests(name) as obstore:
                meta = obstore.head(self._store, self._key(name))
        except FileNotFoundError:
            return None
        return Entry(meta["size"], meta["e_tag"] or "")

    def size(self, name: str) -> int:
        """Return the size of an object in bytes, or -1 if there is no such object."""
        entry = self.entry(name)
        return -1 if entry is None else entry.size

    def entries(self) -> dict[str, Entry]:
        """Return every object of the folder, by its key in the folder; takes a request per 1,000 objects."""
        found: dict[str, Entry] = {}
        start = len(self._prefix) + 1
        with self._requests("") as obstore:
            for page in obstore.list(self._store, prefix=self._prefix, chunk_size=1000):
                for meta in page:
                    if meta["path"].startswith(f"{self._prefix}/"):
                        found[meta["path"][start:]] = Entry(meta["size"], meta["e_tag"] or "")
        return found

    # writing

    def put(self, name: str, content: bytes | IO[bytes]) -> None:
        """Store an object, replacing any of that name; large files are stored in parts."""
        with self._requests(name) as obstore:
            if isinstance(content, bytes):
                obstore.put(self._store, self._key(name), content, use_multipart=False)
            else:
                key = self._key(name)
                obstore.put(self._store, key, content, use_multipart=True, chunk_size=_PART_BYTES)

    def replace(self, name: str, content: bytes) -> None:
        """Store a small object, replacing any of that name."""
        self.put(name, content)

    def create(self, name: str, content: bytes) -> None:
        """Store an object that must not exist yet; one with the same content is success.

        obstore does not repeat such a request after an error, and when it does after a lost answer, it
        reports the object that it has stored itself as existing. The object is therefore compared.

        Raises
        ------
        FileExistsError
            If the object exists with another content.
        """
        deadline, wait = time.monotonic() + self._patience, 0.1
        while True:
            try:
                with self._requests(name) as obstore:
                    obstore.put(self._store, self._key(name), content, mode="create", use_multipart=False)
                return
            except FileNotFoundError:
                what = "cannot be stored: the bucket does not exist"
                raise FileNotFoundError(errno.ENOENT, what, f"{self.url}/{name}") from None
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EINVAL):
                    raise
                failure = error
            # the request may have succeeded in spite of the error
            stored = self.read(name, -1)
            if stored == content:
                return
            if stored is not None:
                raise FileExistsError(errno.EEXIST, "exists with another content", f"{self.url}/{name}")
            if time.monotonic() > deadline:
                raise failure
            time.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - spreads retries
            wait = min(2 * wait, _LONGEST_WAIT)

    def remove(self, name: str) -> None:
        """Remove an object, if it exists."""
        try:
            with self._requests(name) as obstore:
                obstore.delete(self._store, self._key(name))
        except FileNotFoundError:
            pass

    def partial(self, name: str) -> "Upload":
        """Return an object that is stored once it is complete."""
        return Upload(self, name)

    def check_conditions(self) -> None:
        """Check that the server honours the condition under which objects are created.

        Raises
        ------
        InputError
            If it ignores the condition, so that two writers could replace each other's commits.
        """
        name = f".probe-{uuid4().hex}"
        folder = ObjectFolder(self.url, self._options)  # a wrong endpoint is reported soon
        try:
            folder.create(name, b"1")
            try:
                folder.create(name, b"2")
            except FileExistsError:
                return
            finally:
                folder.remove(name)
        except OSError as error:  # the name of the probe says nothing to users
            raise type(error)(error.errno, error.strerror, self.url) from None
        host = endpoint_name(self.url, self._options)
        what = f"the server {host} ignores If-None-Match, so that commits could be overwritten"
        raise InputError([Fault(f"out {self.url}", what, "use a server with conditional writes")])

    # a Folder also has these; an object store has no folders, locks or unfinished files

    def check(self) -> None:
        """Do nothing: no other folder can take the place of this one."""

    def sync(self, name: str = ".") -> None:
        """Do nothing: an object that was stored is durable."""

    def locked(self, name: str) -> "nullcontext[None]":
        """Do nothing: commits need no lock."""
        return nullcontext()

    def sweep(self, *names: str) -> None:
        """Do nothing: an object appears when it is complete."""

    def close(self) -> None:
        """Do nothing."""

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}"

    @contextmanager
    def _requests(self, name: str) -> Iterator[Any]:
        """Yield obstore, and turn its errors into OSErrors that name the object."""
        where = f"{self.url}/{name}".rstrip("/")
        if os.getpid() != self._process:  # obstore's threads do not survive a fork, and a request would hang
            what = "a forked process cannot use it; start workers by `spawn` or `forkserver`"
            raise OSError(errno.ENOTSUP, what, where)
        import obstore
        from obstore import exceptions

        try:
            yield obstore
        except (FileNotFoundError, exceptions.NotFoundError):
            raise FileNotFoundError(errno.ENOENT, "is missing", where) from None
        except exceptions.AlreadyExistsError:
            raise FileExistsError(errno.EEXIST, "exists", where) from None
        except exceptions.PreconditionError:
            raise OSError(errno.ESTALE, "was replaced meanwhile", where) from None
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError):
            what = "access was denied; check the credentials in the environment"
            raise PermissionError(errno.EACCES, what, where) from None
        except (exceptions.BaseError, OSError) as error:
            status = _STATUS.search(str(error))
            is_final = status is not None and status[1].startswith("4") and status[1] not in _TRANSIENT
            code = errno.EINVAL if is_final else errno.EIO
            raise OSError(code, self._described(error), where) from None

    def _described(self, error: Exception) -> str:
        """Return the cause of an error without credentials, which obstore's text may contain."""
        text = str(error)
        host = endpoint_name(self.url, self._options)
        if status := _STATUS.search(text):
            return f"the server {host} answered {status[1]}"
        if "timed out" in text or "Timeout" in text:
            return f"the server {host} did not answer in time"
        if "onnect" in text or "error sending request" in text:
            return f"the server {host} cannot be reached"
        text = re.sub(r"\?\S*", "", text.split("\n", 1)[0])
        for secret in secrets(self._options):
            text = text.replace(secret, "…")
        return text[:200]


def _reopened(url: str, options: StorageOptions, patience: float) -> ObjectFolder:
    return ObjectFolder(url, options, patience=patience)


class Upload:
    """An object that is being assembled, with the methods of :class:`~actkit.store.folders.Partial`.

    Parameters
    ----------
    folder
        Folder of the object.
    name
        Its key in the folder.
    """

    def __init__(self, folder: ObjectFolder, name: str) -> None:
        self.name = name
        self.size = 0
        self._folder = folder
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(SINGLE_BYTES)  # noqa: SIM115
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes written, as hexadecimal digits."""
        return self._sha256.hexdigest()

    def write(self, content: bytes) -> int:
        """Append bytes."""
        self._sha256.update(content)
        self.size += len(content)
        return self._file.write(content)

    def sync(self) -> None:
        """Do nothing: the object is stored by :meth:`place`."""

    def place(self) -> None:
        """Store the object: flags and receipts of windows only if they do not exist, others in any case.

        Raises
        ------
        FileExistsError
            If the window was committed by another writer with another content.
        """
        self._file.seek(0)
        if _COMMITS.fullmatch(self.name):
            self._folder.create(self.name, self._file.read())
        elif self.size < SINGLE_BYTES:
            self._folder.put(self.name, self._file.read())
        else:
            self._folder.put(self.name, self._file)

    def place_new(self) -> bool:
        """Store the object unless one of that name exists; return whether it was stored, or was the same."""
        self._file.seek(0)
        try:
            self._folder.create(self.name, self._file.read())
        except FileExistsError:
            return False
        return True

    def close(self) -> None:
        """Discard what is held of the object on this machine."""
        self._file.close()
