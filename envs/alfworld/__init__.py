"""ALFWorld: household tasks in a text world, played in pure Python or by the official engine."""

from envs.alfworld.environment import make_environment, num_tasks, option_faults, success_score
from envs.alfworld.prompt import project_action, render_prompt

__all__ = ["make_environment", "num_tasks", "option_faults", "project_action", "render_prompt", "success_score"]
