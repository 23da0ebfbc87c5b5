"""Plays one game of any environment with nothing but transformers' `generate` and the environment.

    python -m tools.play MODEL_DIR --env alfworld --options '{"data": "GAMES_DIR"}' [--split S] [--game 0] ...

Shows that an exported model needs no part of the trainer.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from envs.base import PromptView, Task, load


def play(options: argparse.Namespace) -> bool:
    """Play to the end, printing every step; returns whether the game was won."""
    tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(options.model, local_files_only=True)
    package = load(options.env)
    environment = package.make_environment(options.options)
    torch.manual_seed(options.seed)
    start = environment.reset(Task(options.env, options.game, 0, options.split))
    observation, history, won = start.observation, [], False
    print(f"task: {start.goal}")
    for index in range(options.max_steps):
        shown = tuple(history[max(0, index - options.history) :])
        view = PromptView(start.goal, shown, index, observation.text, observation.admissible, observation.affordances)
        message = [{"role": "user", "content": package.render_prompt(view, style=options.style)}]
        inputs = tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True, enable_thinking=False
        )
        output = model.generate(**inputs, max_new_tokens=options.max_tokens, do_sample=True, temperature=0.4)
        response = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        action, _ = package.project_action(response)
        print(f"\n{observation.text}\n> {action}")
        outcome = environment.step(action)
        history.append((observation.text, action))
        observation, won = outcome.observation, outcome.done and outcome.won
        if outcome.done:
            break
    print(f"\n{observation.text}\n{'won' if won else 'not solved'} after {len(history)} steps")
    environment.close()
    return won


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 whether the game was won or not, 2 if it cannot be played."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--env", default="alfworld")
    parser.add_argument("--options", type=json.loads, default={}, help="the environment's, JSON; its files: data")
    parser.add_argument("--split", default="valid_unseen")
    parser.add_argument("--game", type=int, default=0)
    parser.add_argument("--style", default="full")
    parser.add_argument("--history", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=30)
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        if not options.model.is_dir():
            raise ValueError(f"{options.model} is no directory; give a Hugging Face model's")
        if faults := load(options.env).option_faults(options.options):
            raise ValueError("; ".join(faults))
        play(options)
    except ValueError as error:
        print(f"tools.play: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
