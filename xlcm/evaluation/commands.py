"""`xlcm evaluate MODEL DATA`: recall by language of a saved model, without a config file.

DATA is a manifest, or `scenes` for the built-in benchmark. What has no option here is set as in a
config: `xlcm evaluate MODEL scenes --set data.seed=1 evaluation.bootstrap=0`.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xlcm.evaluation.report import RetrievalReport

SCENES = "scenes"
SCENES_LANGS = ("en", "de", "zh")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `xlcm evaluate`."""
    parser.description = __doc__
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", help="folder of a saved model, or its id on the hub")
    parser.add_argument("data", help=f"a manifest, or `{SCENES}`: the built-in benchmark")
    parser.add_argument("--split", default="test", help="which split (default: test)")
    parser.add_argument("--size", type=int, default=1000, help="scenes (default: 1000)")
    parser.add_argument("--langs", nargs="+", metavar="LANG",
                        help="languages of the queries (default: all; scenes: "
                        f"{' '.join(SCENES_LANGS)})")  # fmt: skip
    parser.add_argument("--gallery", choices=["all", "captioned"], default="all",
                        help="every image, or those captioned in the query's language")  # fmt: skip
    parser.add_argument("--features", metavar="DIR", help="a feature store, as encode.py writes it")
    parser.add_argument("--image-root", metavar="DIR",
                        help="what image paths start from (default: its folder)")  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="write report and plots here")
    parser.add_argument("--workers", type=int, default=2, help="loading processes (default: 2)")
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: a GPU if there is one)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE",
                        help="further options of data and evaluation, as in a config")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the report; return the exit code."""
    import torch

    from xlcm.config import ConfigError, check, override
    from xlcm.evaluation.settings import EvaluateConfig
    from xlcm.evaluation.setup import judge, save

    tree = _tree(args)
    override(tree, args.set)
    config = check(EvaluateConfig, tree, where="xlcm evaluate")
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device {args.device}: {error}") from error
    result = judge(config, device)
    if config.output is not None:
        save(result, config)
    if args.json:
        print(json.dumps(result.report.to_dict(), ensure_ascii=False, indent=2, allow_nan=False))
    else:
        _show(result.report)
        if config.output is not None:
            print(f"report and plots are in {config.output}")
    return 0


def _show(report: RetrievalReport) -> None:
    """Print a rich table on a terminal; plain lines elsewhere, where rich would cut them at 80."""
    from rich.console import Console

    console = Console()
    if console.is_terminal:
        console.print(report)
    else:
        print(report)


def _tree(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments as the tree of a config."""
    from xlcm.config import ConfigError

    data: dict[str, Any]
    if args.data == SCENES:
        if args.image_root:
            raise ConfigError("scenes are drawn: --image-root goes with a manifest")
        langs = args.langs or list(SCENES_LANGS)
        source = "en" if "en" in langs else langs[0]
        data = {
            "name": "scenes", "split": args.split, "size": args.size, "source_lang": source,
            "target_langs": [lang for lang in langs if lang != source], "features": args.features,
        }  # fmt: skip
    else:
        langs, source = args.langs, "en"
        data = {"name": "manifest", "path": args.data, "split": args.split}
        given = {"features": args.features, "image_root": args.image_root}
        data.update({key: value for key, value in given.items() if value is not None})
    evaluation = {"langs": langs, "gallery": args.gallery, "source_lang": source}
    return {
        "model": args.model, "data": data, "evaluation": evaluation, "workers": args.workers,
        "output": args.out,
    }  # fmt: skip
