"""WebShop: shopping for what an instruction asks for, in the official catalogue or a generated one."""

from envs.webshop.environment import make_environment, num_tasks, option_faults, success_score
from envs.webshop.prompt import project_action, render_prompt

__all__ = ["make_environment", "num_tasks", "option_faults", "project_action", "render_prompt", "success_score"]
