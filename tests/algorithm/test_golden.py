"""The published code's numbers, and that the comparison notices when they are not reproduced."""

import json
from pathlib import Path

from tools import check_golden

GOLDEN = Path("tests/data/golden_advantages_and_losses.json")


def test_every_golden_value_is_reproduced(capsys):
    assert check_golden.main([str(GOLDEN)]) == 0
    assert "grad_logprobs/policy+0.01*k3/token-mean" in capsys.readouterr().out


def test_a_wrong_value_is_noticed(tmp_path):
    batches = json.loads(GOLDEN.read_text())
    batches[1]["expected"]["kl_loss/token-mean/k3"] += 2e-5
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(batches))
    assert check_golden.main([str(wrong)]) == 1


def test_a_file_that_cannot_be_read_is_one_line(tmp_path, capsys):
    torn = tmp_path / "torn.json"
    torn.write_text("[{")
    for path in (tmp_path / "missing.json", torn):
        assert check_golden.main([str(path)]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"check_golden: {path} cannot be read: ") and captured.err.count("\n") == 1
