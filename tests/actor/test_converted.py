"""tools.convert against the real actor: what one layout saves is exported, what is converted any layout loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tools.convert import main

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    ("ranks", "layout", "model"),
    [
        ("two_ranks", "vpp2", "qwen3_tied"),
        ("two_ranks", "tp2_sp_ep2", "qwen3_moe"),
        ("four_ranks", "ep2_pp2", "qwen3_moe_mixed"),
    ],
)
def test_a_training_checkpoint_is_exported_as_the_actor_exports(
    ranks: str, layout: str, model: str, models: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(ranks)
    checkpoint, exported = models / "saved" / layout / "step_1", models / "saved" / f"{layout}_hf"
    arguments = ["megatron-to-hf", str(checkpoint), str(tmp_path / "hf"), "--model", str(models / model)]
    assert main(arguments) == 0
    assert main(["verify", str(tmp_path / "hf"), str(exported)]) == 0
    assert main(["verify", str(tmp_path / "hf"), str(models / model)]) == 1  # an update lies between


@pytest.mark.parametrize(
    ("layout", "model"), [("tp2_sp_ep2", "qwen3_moe"), ("pp2", "qwen2_untied"), ("tp2_sp", "qwen3_tied")]
)
def test_what_is_converted_loads_at_another_layout(layout: str, model: str, two_ranks: dict[str, Any]) -> None:
    assert two_ranks[f"converted/{layout}/{model}"] == two_ranks[f"{layout}/{model}"]["scores"]


def test_a_checkpoint_of_weights_alone_is_a_start(two_ranks: dict[str, Any]) -> None:
    result = two_ranks["load_weights"]
    assert result["trainer_state"] == {}
    assert result["grad_norm"] > 0
    assert result["is_other"]
