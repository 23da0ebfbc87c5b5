"""What of a checkpoint's `.metadata` is unpickled, and what is not."""

from __future__ import annotations

import io
import os
import pickle
from enum import Enum
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import Metadata

from megatron_opid.weights.dcp import METADATA, DcpError, DcpReader, DcpWriter


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    writer = DcpWriter(tmp_path / "stored")
    writer.add("a.distcp", "weight", (2, 3), (0, 0), torch.ones(2, 3))
    writer.finish()
    return tmp_path / "stored"


class FirstOfPython311(pickle.Pickler):
    """Members of an enum as 3.11.0 to 3.11.3 pickle them."""

    def reducer_override(self, value: object) -> object:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


class Call:
    """Unpickled without restriction it is what a call gives."""

    def __init__(self, function: object, *arguments: object):
        self._call = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self._call


def test_a_checkpoint_that_an_early_python_3_11_wrote_is_read(directory: Path):
    buffer = io.BytesIO()
    FirstOfPython311(buffer).dump(pickle.loads((directory / METADATA).read_bytes()))
    assert b"getattr" in buffer.getvalue()
    (directory / METADATA).write_bytes(buffer.getvalue())
    assert torch.equal(DcpReader(directory).read("weight"), torch.ones(2, 3))


@pytest.mark.parametrize("call", [Call(getattr, Metadata, "__init__"), Call(getattr, str, "join"), Call(os.getpid)])
def test_nothing_else_is_called(directory: Path, call: Call):
    (directory / METADATA).write_bytes(pickle.dumps(call))
    with pytest.raises(DcpError, match="no part of a checkpoint|cannot be read"):
        DcpReader(directory)
