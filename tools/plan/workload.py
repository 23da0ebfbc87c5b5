"""What one training step has to compute: samples, tokens, rows of the LM head."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_opid.config import Config
from tools.plan.constants import constant


@dataclass(frozen=True)
class Workload:
    """A step's episodes, and the means of their samples. A sample is one prompt and its response."""

    num_episodes: int
    max_steps: int
    mean_steps: float
    prompt_tokens: float
    response_tokens: float
    policy_contexts: float  # times that a sample is scored under the policy: plain prompt and teachers
    reference_contexts: float
    num_updates: int
    num_analyses: int

    @classmethod
    def of(
        cls,
        config: Config,
        *,
        mean_steps: float | None = None,
        prompt_tokens: float | None = None,
        response_tokens: float | None = None,
    ) -> Workload:
        """The means default to the assumptions of constants.py, cut to what the configuration allows."""
        rollout, is_opid = config.rollout, config.algorithm.name == "opid"
        teachers = (1.0 + constant("step_skill_share") * (config.skills.routing == "additive")) * is_opid
        on_reference = config.algorithm.teacher == "reference"
        episodes = rollout.tasks_per_step * rollout.group_size
        return cls(
            num_episodes=episodes,
            max_steps=config.env.max_steps,
            mean_steps=mean_steps or constant("mean_step_share") * config.env.max_steps,
            prompt_tokens=prompt_tokens or min(constant("mean_prompt_tokens"), rollout.max_prompt_tokens),
            response_tokens=response_tokens or min(constant("mean_response_tokens"), rollout.max_response_tokens),
            policy_contexts=1.0 + (0.0 if on_reference else teachers),
            reference_contexts=(config.algorithm.kl_coefficient > 0) + (teachers if on_reference else 0.0),
            num_updates=config.actor.updates_per_step,
            num_analyses=episodes * (is_opid and config.skills.analyzer == "openai"),
        )

    @property
    def num_samples(self) -> float:
        return self.num_episodes * self.mean_steps

    @property
    def sample_tokens(self) -> float:
        """Tokens that the model sees of a sample: the last response token is a target only."""
        return self.prompt_tokens + self.response_tokens - 1

    @property
    def teacher_extra_tokens(self) -> float:
        return constant("skill_tokens")

    @property
    def policy_score_tokens(self) -> float:
        """Tokens of the scoring pass under the policy's weights; teacher prompts are longer by a skill."""
        teachers = self.policy_contexts - 1
        return self.num_samples * (self.policy_contexts * self.sample_tokens + teachers * self.teacher_extra_tokens)

    @property
    def reference_score_tokens(self) -> float:
        return self.num_samples * self.reference_contexts * self.sample_tokens

    @property
    def update_tokens(self) -> float:
        return self.num_samples * self.sample_tokens

    @property
    def row_share(self) -> float:
        """Response rows per token: only these reach the head."""
        return self.response_tokens / self.sample_tokens

    def alive_share(self, turn: float) -> float:
        """Episodes still running at `turn` (0 to max_steps): a straight line whose mean is `mean_steps`."""
        share = self.mean_steps / self.max_steps
        if share >= 0.5:
            return 1.0 - 2.0 * (1.0 - share) * turn / self.max_steps
        return max(0.0, 1.0 - turn / (2.0 * self.mean_steps))
