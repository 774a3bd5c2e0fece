"""Which validation picks the best weights, and by which rule the rate falls."""

from pathlib import Path

import pytest
import tiny

from xlcm.config import ConfigError, check
from xlcm.evaluation.report import DirectionResult, FusedResult, RetrievalReport
from xlcm.training.optim import lr_factor
from xlcm.training.progress import Progress, judge, out_of_patience, score
from xlcm.training.settings import OptimConfig, RunConfig, TrainConfig

NRCCR = OptimConfig(
    lr=1e-4, schedule="plateau", warmup=0, plateau_from="drop", plateau_patience=3, epoch_decay=0.99
)
RATES = [1, 0.99, 0.99**2, 0.99**3 * 0.5, 0.99**4 * 0.5, 0.99**5 * 0.5]


def rates(optim, scores, patience=0):
    """Return the factor on the rate at the start of each epoch, until the run stops."""
    run = RunConfig(epochs=len(scores), patience=patience)
    progress, found = Progress(), []
    for epoch, value in enumerate(scores):
        found.append(lr_factor(10 * epoch, 1000, optim, progress.drops, epoch))
        progress.step = 10 * (epoch + 1)
        judge(tiny.report(value), progress, optim, run)
        if out_of_patience(progress, run):
            break
    return found


def test_nrccr_halves_three_epochs_after_the_last_time_and_stops_at_the_eleventh_without_gain():
    constant = rates(NRCCR, [50.0] * 50, patience=11)
    assert constant[:6] == pytest.approx(RATES)
    assert len(constant) - 1 == 11  # the index of the last epoch
    never = rates(NRCCR, [0.0] * 50, patience=11)
    assert never[:6] == pytest.approx(RATES)
    assert len(never) - 1 == 10


def test_nrccr_rates_in_a_run(tiny_data, tmp_path):
    run = {"steps": None, "epochs": 50, "patience": 11}
    optim = NRCCR.model_dump(mode="json")
    trained = tiny.train(
        tiny.tree(tiny_data, tmp_path, run=run, optim=optim), evaluate=lambda _: tiny.report(50.0)
    )
    assert trained.trained.progress.step == 4 * 12  # four batches an epoch
    found = [record["lr"] for record in tiny.metrics(tmp_path)]
    assert found[:24:4] == pytest.approx([1e-4 * rate for rate in RATES])
    assert found[3:24:4] == found[:24:4]  # and the same within an epoch


def test_a_gain_does_not_begin_the_count_anew_for_nrccr_but_it_does_by_default():
    scores = [1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    since_drop = OptimConfig(schedule="plateau", warmup=0, plateau_patience=3, plateau_from="drop")
    since_best = OptimConfig(schedule="plateau", warmup=0, plateau_patience=3)
    assert rates(since_drop, scores) == [1, 1, 1, 1, 0.5, 0.5, 0.5]
    assert rates(since_best, scores) == [1, 1, 1, 1, 1, 1, 0.5]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "plateau"])
def test_the_decay_of_an_epoch_lies_on_top_of_any_schedule_and_of_the_warm_up(schedule):
    plain = OptimConfig(schedule=schedule, warmup=10)
    decayed = OptimConfig(schedule=schedule, warmup=10, epoch_decay=0.9)
    for step, epochs in ((0, 0), (5, 1), (50, 3), (99, 7)):
        expected = lr_factor(step, 100, plain, 1) * 0.9**epochs
        assert lr_factor(step, 100, decayed, 1, epochs) == pytest.approx(expected)


def test_the_decay_comes_after_whole_epochs_also_where_batches_are_accumulated(tiny_data, tmp_path):
    optim = {"schedule": "constant", "warmup": 0, "epoch_decay": 0.5, "lr": 0.01}
    run = {"steps": 5, "accumulate": 3}  # an epoch of 4 batches ends in the second step
    tiny.train(tiny.tree(tiny_data, tmp_path, run=run, optim=optim))
    assert [r["lr"] for r in tiny.metrics(tmp_path)] == [0.01, 0.01, 0.005, 0.0025, 0.00125]


def report(to_visual, to_text):
    """Return a report with the recalls of two languages."""
    rows = []
    for direction, values in (("text_to_video", to_visual), ("video_to_text", to_text)):
        rows += [
            DirectionResult(lang, direction, 4, 4, value, 0.0, 0.0, 1, 1, 1.0)
            for lang, value in zip(("en", "de"), values)
        ]
    sums = {lang: a + b for lang, a, b in zip(("en", "de"), to_visual, to_text)}
    return RetrievalReport("tiny", "val", {}, rows, sums)


def test_the_sum_of_one_direction_may_pick_the_best():
    first, second = report([30.0, 10.0], [10.0, 10.0]), report([20.0, 10.0], [90.0, 90.0])
    for select, expected, best in (
        ("sum_r", (30.0, 105.0), 2),
        ("text_to_visual", (20.0, 15.0), 1),
    ):
        run = RunConfig(steps=1, select=select)
        assert (score(first, run), score(second, run)) == expected
        progress = Progress()
        for step, found in enumerate((first, second), start=1):
            progress.step = step
            judge(found, progress, OptimConfig(), run)
        assert (progress.best_step, progress.best_score) == (best, max(expected))


def test_fused_queries_may_pick_the_best():
    run = RunConfig(steps=1, select="fused_text_to_visual")
    found = report([30.0, 10.0], [10.0, 10.0])
    rows = report([50.0, 70.0], [0.0, 0.0]).results
    found.fused = [FusedResult(0.2, rows, {}), FusedResult(0.5, [], {})]
    assert score(found, run) == 60.0
    tree = {"steps": 1, "select": "fused_text_to_visual"}
    with pytest.raises(ConfigError, match=r"needs evaluation\.fusion"):
        check(TrainConfig, tiny.tree(Path("data"), Path("output"), run=tree))


def test_the_log_has_the_score_that_picks(tiny_data, tmp_path):
    run = {"steps": 2, "eval_every": 2, "select": "text_to_visual"}
    tiny.train(tiny.tree(tiny_data, tmp_path, run=run), evaluate=lambda _: tiny.report(77.0))
    (record,) = tiny.metrics(tmp_path, "eval")
    assert (record["sum_r_mean"], record["score"]) == (77.0, 150.0)  # 25 + 50 + 75
