"""The config of `recipes/benchmark.py`: methods times values of one axis times seeds."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from xlcm.config import Section
from xlcm.registry import nearest

NAME = re.compile(r"[\w.+-]+")
Label = int | float | str
Tree = dict[str, Any]
COLUMNS = ("method", "seed", "test", "lang", "sum_r")
"""Keys of a row of the results beside the axis."""


class Step(Section):
    """One thing that is done once, before the runs: exactly one of `train`, `encode`, `xlcm`.

    Args:
        train: config of `recipes/train.py`.
        encode: config of `recipes/encode.py`.
        xlcm: a command of `xlcm` with its arguments, such as `data import photos --out FILE`.
        set: keys of the config with other values, such as `{run.epochs: 3}`.
    """

    train: str | None = None
    encode: str | None = None
    xlcm: str | None = None
    set: Tree = {}

    @model_validator(mode="after")
    def _one_kind(self) -> Step:
        if sum(kind is not None for kind in (self.train, self.encode, self.xlcm)) != 1:
            raise ValueError("a step of prepare is one of train, encode and xlcm")
        if self.xlcm is not None and self.set:
            raise ValueError("prepare: an xlcm command has arguments; `set` is for configs")
        return self


class MethodRuns(Section):
    """What is compared: changes to the base config.

    Args:
        like: another method of the grid whose changes are made first.
        only: values of the axis (by label) that it is run at; None: all.
        model: laid over the base's section of the same name, as are the next five.
        data: see `model`.
        method: see `model`.
        optim: see `model`.
        run: see `model`.
        evaluation: see `model`.
        stages: of the training, as in a config of `recipes/train.py`.
        set: single keys, made last, such as `{stages.1.method.feature_weight: 0}`.
    """

    like: str | None = None
    only: list[Label] | None = None
    model: Tree | str | None = None
    data: Tree | None = None
    method: Tree | str | None = None
    optim: Tree | None = None
    run: Tree | None = None
    evaluation: Tree | None = None
    stages: list[Tree] | None = None
    set: Tree = {}


class AxisValue(Section):
    """One value of the axis.

    Args:
        label: in folders, results, tables and plots.
        set: keys of the config with the values that they take, such as
            `{data.train.noise_rate: 0.2}`.
    """

    label: Label
    set: Tree = {}


class Axis(Section):
    """What the methods are compared over.

    Args:
        name: the key of the results, such as `noise`.
        values: in the order of the tables; a plot over numbers has them to scale.
    """

    name: str
    values: Annotated[list[AxisValue], Field(min_length=1)]


class Test(Section):
    """One more split that each trained model is judged on.

    Args:
        data: laid over the run's `data.test`.
        evaluation: laid over the run's `evaluation`.
    """

    __test__ = False  # pytest takes classes of this name for its own

    data: Tree = {}
    evaluation: Tree = {}


class GridConfig(Section):
    """A comparison of training runs.

    Args:
        name: for messages and headings.
        output: where runs are kept; None: `runs/<name>`.
        results: JSON file of the figures, written after each run; None: in `output`.
        page: Markdown file with the tables, written anew or between its marks; None: in `output`.
        plot: PNG file; None: in `output`.
        plotted: methods in the plot; None: all.
        prepare: done once, in this order, before the runs.
        base: config of `recipes/train.py` that all runs share: a file, or its sections.
        methods: what is compared, by name.
        baseline: the method that differences are taken to; None: no table of differences.
        axis: what the methods are compared over.
        seeds: of the runs; intervals are over them.
        tests: further splits by name; empty: the run's own report is what counts.
        average: languages whose mean is shown beside them.
        jobs: processes that train at a time, one thread each.
        keep: keep checkpoints, models and logs of finished runs.
        changed: what to do with finished runs of another config: `refuse` to mix them with new
            ones, or `redo` them.
    """

    name: str = "benchmark"
    output: str | None = None
    results: str | None = None
    page: str | None = None
    plot: str | None = None
    plotted: list[str] | None = None
    prepare: list[Step] = []
    base: Tree | str
    methods: dict[str, MethodRuns]
    baseline: str | None = None
    axis: Axis
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] = [0, 1, 2]
    tests: dict[str, Test] = {}
    average: list[str] = []
    jobs: Annotated[int, Field(gt=0)] = 1
    keep: bool = False
    changed: Literal["refuse", "redo"] = "refuse"

    @model_validator(mode="after")
    def _fits_together(self) -> GridConfig:
        if not self.methods:
            raise ValueError("methods is empty: a comparison needs at least one")
        labels = [value.label for value in self.axis.values]
        names = [*self.methods, self.axis.name, *map(str, labels), *self.tests]
        for name in names:  # they are names of folders
            if not NAME.fullmatch(name) or not name.strip("."):
                raise ValueError(f"{name!r} can't name a folder: letters, digits and _ . + - do")
        if self.axis.name in COLUMNS:
            raise ValueError(
                f"axis.name: {self.axis.name!r} is a key of the results already, beside "
                f"{', '.join(c for c in COLUMNS if c != self.axis.name)}: give another name"
            )
        for kind, found in (("axis.values", [str(label) for label in labels]),
                            ("seeds", [str(seed) for seed in self.seeds])):  # fmt: skip
            twice = sorted({one for one in found if found.count(one) > 1})
            if twice:
                raise ValueError(f"{kind}: {', '.join(twice)} is there twice")
        if self.baseline is not None:
            self._known("baseline", self.baseline)
        for name in self.plotted or ():
            self._known("plotted", name)
        for name, method in self.methods.items():
            if method.like is not None:
                self._known(f"methods.{name}.like", method.like)
                self._no_circle(name)
            for label in method.only or ():
                if label not in labels:
                    raise ValueError(
                        f"methods.{name}.only: {label!r} is no label of the axis; there are "
                        f"{', '.join(map(str, labels))}"
                    )
        folder = self.output = self.output or f"runs/{self.name}"
        self.results = self.results or f"{folder}/results.json"
        self.page = self.page or f"{folder}/results.md"
        self.plot = self.plot or f"{folder}/results.png"
        return self

    def _known(self, where: str, name: str) -> None:
        if name not in self.methods:
            raise ValueError(f"{where}: no method is called {name!r}" + nearest(name, self.methods))

    def _no_circle(self, name: str) -> None:
        seen: list[str] = []
        at: str | None = name
        while at is not None and at in self.methods:
            if at in seen:
                raise ValueError(f"methods.{name}.like goes round in a circle")
            seen.append(at)
            at = self.methods[at].like
