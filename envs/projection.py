"""How an action is read from a response that thinks first and acts then."""

from __future__ import annotations

import re

_CJK = re.compile(r"[\u4e00-\u9fff]")


def project_tagged_action(response: str, fallback_characters: int) -> tuple[str, bool]:
    """The action in a response, lower case, and whether the response has the required form.

    The action stands between the first <action> and the first </action>; without both it is the last
    `fallback_characters` characters. Valid means both action tags, both think tags (in lower case) and no CJK
    character. The action itself is not judged: one that the environment does not accept is valid and changes nothing.
    """
    lowered = response.lower()
    start, end = lowered.find("<action>"), lowered.find("</action>")
    if start < 0 or end < 0:
        return lowered[-fallback_characters:], False
    action = lowered[start + len("<action>") : end].strip()
    return action, "<think>" in response and "</think>" in response and not _CJK.search(response)
