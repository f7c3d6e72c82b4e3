"""A loopback Hub that refuses, fails or lacks what the real one does now and then."""

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.hub.server import LoopbackHub, _Answer, _Handler, _Refused, _Repository

COPY = ".copy"  # ends the name of what the Hub has at the branch below
BRANCH = quote("refs/convert/parquet", safe="")


@dataclass(frozen=True)
class Fault:
    """What is answered about a repository instead: an error, or nothing at all for status 0."""

    status: int
    code: str = ""
    message: str = ""
    path: str = ""  # only where this is part of the path that is asked for


class FaultyHub(LoopbackHub):
    """A Hub on which `faults` names the repositories that do not answer as they should.

    What lies in `<name>.copy` is the branch of a data set with the Parquet files that the Hub made.
    """

    def __init__(self, root: Path, faults: dict[str, Fault]) -> None:
        super().__init__(root)
        self.faults = faults
        self._server.RequestHandlerClass = _FaultyHandler

    def led(self, path: str) -> str:
        """Return the path that answers for what is asked at a branch with a copy."""
        for folder in self.root.glob(f"datasets/*/*{COPY}"):
            copy = f"{folder.parent.name}/{folder.name}"
            commit = _Repository(self.root, "datasets", copy).commit
            for revision in (BRANCH, commit):
                for ask in ("resolve", "revision", "tree", "paths-info"):
                    asked = f"{copy.removesuffix(COPY)}/{ask}/{revision}"
                    path = path.replace(asked, f"{copy}/{ask}/{commit}")
        return path


class _FaultyHandler(_Handler):
    def _answer(self, path: str, fields: dict[str, list[str]]) -> _Answer | None:
        hub = self.server.hub
        assert isinstance(hub, FaultyHub)
        for name, fault in hub.faults.items():
            if f"/{name}/" in f"{path}/" and fault.path in path:
                if not fault.status:
                    raise ConnectionAbortedError("the connection ends here")
                raise _Refused(fault.status, fault.code, fault.message)
        return super()._answer(hub.led(path), fields)
