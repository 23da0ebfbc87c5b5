"""placeholder"""


def alfworld_skills(trajectory, success, max_step_skills):
    return None
