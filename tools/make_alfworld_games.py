"""Generate solvable household games in ALFWorld's on-disk layout, without ALFWorld installed.

    python -m tools.make_alfworld_games --out data/alfworld --seed 0 --train 2000 --valid-seen 128 --valid-unseen 128

Every game is proven by playing its own plan in the native engine. No game of one split occurs in another; the rooms of
valid_unseen occur in no other split. The same arguments give the same files.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

from envs.alfworld.games import LAYOUT, TASK_TYPES
from envs.alfworld.generator import generate_game, write_game
from envs.alfworld.layout import LEVELS
from envs.alfworld.rooms import catalogue

UNSEEN_ROOMS = (10, 219, 308, 424)  # those of ALFRED's unseen validation split


def make_games(
    out: Path,
    *,
    seed: int,
    counts: dict[str, int],
    difficulty: int,
    task_types: Sequence[str] = TASK_TYPES,
    objects: Sequence[str] = (),
) -> int:
    """Write `counts[split]` games of each split under out/json_2.1.1, task types in turn; returns the number written.

    `objects` are the object classes that occur; none given: all.

    Raises:
        ValueError: `out` already holds games, or an argument is out of range.
    """
    if (out / LAYOUT).exists():
        raise ValueError(f"{out / LAYOUT} exists; choose another --out or remove it")
    if not 0 <= difficulty < len(LEVELS):
        raise ValueError(f"--difficulty {difficulty} is not between 0 and {len(LEVELS) - 1}")
    shelves = catalogue().with_objects(objects) if objects else catalogue()
    rng = Random(seed)
    known: set[tuple] = set()
    partial = out / f".{LAYOUT}.partial"  # renamed when complete, so that a killed run leaves no half data set
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for split, count in counts.items():
        rooms = [number for number in catalogue().rooms if (number in UNSEEN_ROOMS) == (split == "valid_unseen")]
        for index in range(count):
            task_type = task_types[index % len(task_types)]
            game = generate_game(rng, shelves, task_type, rooms, LEVELS[difficulty])
            while game.signature in known:
                game = generate_game(rng, shelves, task_type, rooms, LEVELS[difficulty])
            known.add(game.signature)
            write_game(partial / split, game, f"trial_T{seed:08d}_{index:06d}")
    partial.rename(out / LAYOUT)
    return len(known)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help=f"the folder that will contain {LAYOUT}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=1000, help="number of games")
    parser.add_argument("--valid-seen", type=int, default=128, help="number of games")
    parser.add_argument("--valid-unseen", type=int, default=128, help="number of games")
    parser.add_argument("--difficulty", type=int, default=3, help="0 (6-8 receptacles) to 3 (whole rooms)")
    parser.add_argument("--task-types", nargs="+", choices=TASK_TYPES, default=TASK_TYPES)
    parser.add_argument("--objects", nargs="+", default=(), metavar="CLASS", help="object classes, as Mug; default all")
    args = parser.parse_args(arguments)
    counts = {"train": args.train, "valid_seen": args.valid_seen, "valid_unseen": args.valid_unseen}
    start_s = time.monotonic()
    try:
        total = make_games(
            args.out,
            seed=args.seed,
            counts=counts,
            difficulty=args.difficulty,
            task_types=args.task_types,
            objects=args.objects,
        )
    except ValueError as error:
        print(f"make_alfworld_games: {error}", file=sys.stderr)
        return 2
    elapsed_s = time.monotonic() - start_s
    print(f"{total} games in {args.out / LAYOUT}, each won by its own plan ({total / elapsed_s:.0f} games/s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
