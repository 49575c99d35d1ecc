"""Tell what a training needs on every device before it runs: ``videollm memory --config FILE [key=value ...]``."""

import sys
from collections.abc import Sequence

from videollm.common.command import Parser, ended, quieten, whole
from videollm.training.settings import TEXT, check_values, read_values


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = Parser(prog="videollm memory", description="What a training run needs, before it runs.")
    where = "YAML file; one of the clone's configs/ is found from any folder"
    parser.add_argument("--config", required=True, metavar="FILE", help=where)
    parser.add_argument("--gpus", type=whole(1), default=1, help="processes over which DeepSpeed spreads the run")
    parser.add_argument("--frames", type=whole(1), help="of a video; by default the most that the settings let through")
    parser.add_argument("--text", type=whole(1), help=f"tokens of a question with its answer; default {TEXT}")
    parser.add_argument("--questions", type=whole(1), help="of a video, with data.pack; default data.max_questions")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.batch_size=4 ...")
    args = parser.parse_intermixed_args(argv)

    def run() -> None:
        values = read_values(args.config, args.overrides)
        check_values(values, args.config, ("model",))
        quieten()
        from rich.console import Console

        from videollm.training.assemble import read_settings
        from videollm.training.memory import assumed_load, estimate, planned_model, tables

        settings = read_settings(values)
        model = planned_model(settings)
        load = assumed_load(settings, model, args.frames, args.text, args.questions)
        Console(width=110).print(*tables(estimate(model, settings, load, args.gpus)))

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
