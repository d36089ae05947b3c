"""The registry's one SQLite file: transactions, and the events that every change leaves.

Guarantees:
  - A transaction is durable when it has ended, and stands whole or not at all, `kill -9` and a full disk included.
  - Writers of several processes wait for each other; threads may share one object.
  - A row of `events` is never changed or removed.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sottovoce.common.errors import DeploymentError
from sottovoce.server.registry_tables import SCHEMA, SCHEMA_VERSION

BUSY_SECONDS = 10.0

Row = Mapping[str, Any]


class Change:
    """A transaction that is open."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def do(self, statement: str, *values: object) -> int:
        """Executes one statement and returns how many rows it changed."""
        return self._connection.execute(statement, values).rowcount

    def all(self, query: str, *values: object) -> list[Row]:
        """Returns every row."""
        return [dict(row) for row in self._connection.execute(query, values)]

    def first(self, query: str, *values: object) -> Row | None:
        """Returns the first row, if there is one."""
        return next(iter(self.all(query, *values)), None)

    def note(self, who: str, what: str, facts: Mapping[str, Any]) -> None:
        """Adds an event."""
        text = json.dumps(facts, sort_keys=True)
        values = (time.time(), who, what, text)
        self.do("INSERT INTO events (at, who, what, facts) VALUES (?, ?, ?, ?)", *values)


class RegistryFile:
    """An open file."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.RLock()
        with self._in_words():
            self._connection = sqlite3.connect(
                path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            for setting in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {setting}")

    @classmethod
    def create(cls, path: Path) -> "RegistryFile":
        """Makes the tables, in a file for its owner's eyes only; goes on where a crash ended that."""
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        except OSError as error:
            raise DeploymentError(f"{path}: a registry cannot be made ({error.strerror}).") from None
        file = cls(path)
        with file.changing() as change:
            if change.first("SELECT 1 FROM sqlite_master"):
                raise DeploymentError(f"{path}: expected to make a new registry; there is one.")
            for statement in SCHEMA.split(";\n"):
                change.do(statement)
            change.do(f"PRAGMA user_version = {SCHEMA_VERSION}")
            change.note("coordinator", "registry created", {"schema": SCHEMA_VERSION})
        return file

    @classmethod
    def open(cls, path: Path) -> "RegistryFile":
        """Opens a file that `create` made. Raises: DeploymentError: none, damaged, or of another version."""
        if not path.is_file():
            raise DeploymentError(f"{path}: expected a registry; there is none. Use `sottovoce server init`.")
        file = cls(path)
        try:
            version = file.all("PRAGMA user_version")[0]["user_version"]
            if version != SCHEMA_VERSION:
                raise DeploymentError(
                    f"{path}: expected a registry of version {SCHEMA_VERSION}; this one is of version {version}. "
                    "Use the Sottovoce that made it, or a newer one."
                )
        except DeploymentError:
            file.close()
            raise
        return file

    @contextmanager
    def changing(self) -> Iterator[Change]:
        """One transaction. IMMEDIATE: two writers wait for each other at the start, never fail in the middle."""
        with self._lock, self._in_words():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield Change(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # a full disk has rolled it back already
                    self._connection.execute("ROLLBACK")
                raise

    def all(self, query: str, *values: object) -> list[Row]:
        """Returns every row of a query, as of one moment."""
        with self._lock, self._in_words():
            return Change(self._connection).all(query, *values)

    def first(self, query: str, *values: object) -> Row | None:
        """Returns the first row of a query, if there is one."""
        return next(iter(self.all(query, *values)), None)

    def close(self) -> None:
        """Closes the file. What was changed is durable already."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise DeploymentError(
                f"{self._path}: the registry cannot be used ({error}). See that its disk has room and works; nothing "
                "was changed."
            ) from error
