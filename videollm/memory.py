"""What a run will need on every device before it runs: ``python -m videollm.memory --config FILE [key=value ...]``."""

import argparse
import sys
from collections.abc import Sequence

from videollm.checkpoint.tensors import CheckpointError
from videollm.common.command import tell
from videollm.common.config import ConfigError, override, read_yaml
from videollm.data.annotations import AnnotationError
from videollm.training.assemble import read_settings
from videollm.training.dry_run import NoEstimate
from videollm.training.memory import TEXT, assumed_load, estimate, planned_model, show, tables


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; a user's error is one line and exit status 2."""
    parser = argparse.ArgumentParser(prog="videollm.memory", description="What a training run needs, before it runs.")
    parser.add_argument("--config", required=True, help="YAML file, see configs/")
    parser.add_argument("--gpus", type=int, default=1, help="processes over which DeepSpeed spreads the run")
    parser.add_argument("--frames", type=int, help="of a video; by default the most that the settings let through")
    parser.add_argument("--text", type=int, help=f"tokens of a question with its answer; default {TEXT}")
    parser.add_argument("--questions", type=int, help="of a video, with data.pack; default data.max_questions")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="train.batch_size=4 ...")
    args = parser.parse_intermixed_args(argv)
    try:
        for name in ("gpus", "frames", "text", "questions"):
            if getattr(args, name) is not None and getattr(args, name) < 1:
                raise ConfigError(f"--{name}: {getattr(args, name)}, but it must be at least 1")
        settings = read_settings(override(read_yaml(args.config), args.overrides))
        model = planned_model(settings)
        load = assumed_load(settings, model, args.frames, args.text, args.questions)
        show(tables(estimate(model, settings, load, args.gpus)))
    except (AnnotationError, CheckpointError, ConfigError) as error:
        return tell(error)
    except NoEstimate as error:
        return tell(NoEstimate(f"no estimate: the head or the objective looks at numbers ({error})"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
