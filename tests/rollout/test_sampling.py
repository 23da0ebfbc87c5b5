"""The inverse-CDF draw at its edges."""

import numpy as np
import pytest
import torch

from rollout.engines.sampling import request_uniforms, sample


def draw(logits, uniforms, *, temperature=1.0, top_p=1.0):
    num = len(uniforms)
    rows = torch.tensor(logits, dtype=torch.float32).expand(num, -1)
    ids, logprobs = sample(
        rows, torch.full((num,), temperature), torch.full((num,), top_p), torch.tensor(uniforms, dtype=torch.float64)
    )
    return ids.tolist(), logprobs.tolist()


def test_tokens_without_probability_are_never_drawn():
    inf = float("inf")
    ids, logprobs = draw([-inf, 0.0, -inf, 0.0, -inf], [0.0, 0.49, 0.51, np.nextafter(1.0, 0.0)])
    assert ids == [1, 1, 3, 3]
    assert np.allclose(logprobs, np.log(0.5))


def test_top_p_keeps_the_token_that_reaches_it():
    logits = np.log([0.1, 0.5, 0.15, 0.25])
    ends = [0.0, np.nextafter(1.0, 0.0)]
    assert set(draw(logits, ends, top_p=0.4)[0]) == {1}
    assert set(draw(logits, ends, top_p=0.51)[0]) == {1, 3}
    assert draw(logits, ends, top_p=1.0)[0] == [0, 3]
    assert np.allclose(draw(logits, ends, top_p=0.51)[1], np.log([0.5, 0.25]))  # not renormalised


def test_not_a_number_is_refused():
    with pytest.raises(RuntimeError, match="finite"):
        draw([0.0, float("nan")], [0.5])


def test_uniforms_belong_to_the_seed():
    assert np.array_equal(request_uniforms(2**62 + 1, 5), request_uniforms(2**62 + 1, 8)[:5])
    assert not np.array_equal(request_uniforms(1, 5), request_uniforms(2, 5))
    assert not np.array_equal(request_uniforms(None, 5), request_uniforms(None, 5))
