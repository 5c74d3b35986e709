"""The one place that talks to Chroma: open a folder, and never let it embed or report anything on its own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
from chromadb.api.types import Documents, EmbeddingFunction, Embeddings
from chromadb.config import Settings
from chromadb.utils.embedding_functions import register_embedding_function

from stages.runtime.errors import UserError

COLLECTION = "chunks"


@register_embedding_function
class VectorsOnly(EmbeddingFunction[Documents]):
    """Stands in for Chroma's default embedding function, which would download a model, and refuses to
    embed."""

    def __init__(self) -> None:
        pass

    def __call__(self, input: Documents) -> Embeddings:
        """Always raises UserError: this collection holds vectors of our own embedder."""
        raise UserError(
            "this Chroma collection takes vectors, not texts",
            hint="embed with HybridIndex.from_folder(STORE).embed([...]) and pass query_embeddings=",
        )

    @staticmethod
    def name() -> str:
        """The name that is stored with the collection."""
        return "glassworks_vectors_only"

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> VectorsOnly:
        """Rebuilt by Chroma when a collection is opened."""
        return VectorsOnly()

    def get_config(self) -> dict[str, Any]:
        """Nothing to remember."""
        return {}


class OpenedCollection:
    """A collection opened for asking."""

    def __init__(self, client: Any) -> None:
        self.collection = client.get_collection(COLLECTION, embedding_function=VectorsOnly())

    def __len__(self) -> int:
        return int(self.collection.count())

    def query(self, vectors_QxD: np.ndarray, k: int = 10) -> list[list[str]]:
        """The k nearest ids of each vector, nearest first."""
        found = self.collection.query(query_embeddings=vectors_QxD, n_results=k, include=[])
        return list(found["ids"])


@contextmanager
def chroma_client(files: Path) -> Iterator[Any]:
    """A client on `files`, closed at the end: Chroma keeps one system per path, which would show an old
    state."""
    client: Any = chromadb.PersistentClient(path=str(files), settings=Settings(anonymized_telemetry=False))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def opened_copy(files: Path) -> Iterator[OpenedCollection]:
    """Open a copy of `files` in a temporary folder: Chroma writes when it opens, even where it may not."""
    with tempfile.TemporaryDirectory(prefix="glassworks-chroma-") as copy:
        shutil.copytree(files, copy, dirs_exist_ok=True)
        with chroma_client(Path(copy)) as client:
            yield OpenedCollection(client)
