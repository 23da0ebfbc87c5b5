"""Samples that contradict themselves are refused before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_opid.actor.objectives import sample_terms
from megatron_opid.actor.samples import PolicySample, ScoreRequest, TokenSequence

SEQUENCE = TokenSequence(np.arange(3), np.arange(4))


def test_weights_cover_all_samples() -> None:
    short = TokenSequence(np.arange(3), np.arange(1))
    samples = [PolicySample(SEQUENCE, np.zeros(4), np.ones(4)), PolicySample(short, np.zeros(1), np.ones(1))]
    terms = sample_terms(samples, "seq-mean-token-mean")
    assert terms[0].weights.tolist() == [0.125] * 4
    assert terms[1].weights.tolist() == [0.5]
    assert terms[0].reference_logprobs is None


def test_wrong_length() -> None:
    with pytest.raises(ValueError, match="PolicySample.advantages has 3 values for 4 response tokens"):
        sample_terms([PolicySample(SEQUENCE, np.zeros(4), np.ones(3))], "token-mean")


def test_a_term_for_some_samples_only() -> None:
    with_reference = PolicySample(SEQUENCE, np.zeros(4), np.ones(4), reference_logprobs=np.zeros(4))
    without = PolicySample(SEQUENCE, np.zeros(4), np.ones(4))
    with pytest.raises(ValueError, match="PolicySample.reference_logprobs is given for some samples only"):
        sample_terms([with_reference, without], "token-mean")


def test_unknown_weights() -> None:
    with pytest.raises(ValueError, match="ScoreRequest.weights='teacher'"):
        ScoreRequest(SEQUENCE, weights="teacher")
