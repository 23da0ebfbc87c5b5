"""Trajectories as JSON for programs: what crosses between ranks and into checkpoints. People read trajectory.to_json.

Every rank reads every episode of a step. Token ids and log-probs, the bulk of it, are therefore bytes in base64.
"""

from __future__ import annotations

from array import array
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from rollout.trajectory import Trajectory, from_fields, to_fields

# Types of the array module: signed 32-bit integers, and floats with all their bits.
TYPES = {"prompt_ids": "i", "response_ids": "i", "response_logprobs": "d"}


def to_compact(trajectory: Trajectory) -> dict[str, Any]:
    """What json.dumps takes."""
    fields = to_fields(trajectory)
    fields["steps"] = [
        step | {name: _pack(kind, step[name]) for name, kind in TYPES.items()} for step in fields["steps"]
    ]
    return fields


def from_compact(data: Mapping[str, Any]) -> Trajectory:
    """The inverse of `to_compact`, from what json.loads gives."""
    steps = [step | {name: _unpack(kind, step[name]) for name, kind in TYPES.items()} for step in data["steps"]]
    return from_fields({**data, "steps": steps})


def _pack(kind: str, values: tuple[float, ...]) -> str:
    return b64encode(array(kind, values)).decode()


def _unpack(kind: str, text: str) -> array:
    values = array(kind)
    values.frombytes(b64decode(text))
    return values
