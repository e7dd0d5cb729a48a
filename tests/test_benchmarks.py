"""The benchmarks on tiny models: what they write, and that they run what they say."""

import collections
import dataclasses
import pathlib
import sys
import time

import jax
import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "benchmarks"))
import memory
import scaling
import start
import start_probe
import step
import workload
from engine import Engine
from workers import Worker
from workload import Sizes

from steph_jax.plots import speed, speed_figure

TINY = Sizes(
    feature_dim=12,
    embed_dim=8,
    attention_dim=6,
    num_bins=4,
    num_sources=3,
    top_k=2,
    batch_size=4,
    long_batch=60,
    epoch=40,
    least_steps=2,
    tcga=0.004,
    product=32,
)
KEYS = {
    "slides_per_second",
    "fraction_of_ceiling",
    "ratio_to_pytorch",
    "padding_waste",
    "compilations",
    "peak_bytes",
}


class InProcess:
    """A stand-in for `workers.Worker` without a process of its own."""

    def __init__(self, factory, *arguments):
        self._made = factory(*arguments)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def call(self, method):
        return getattr(self._made, method)()


def test_work_per_patch_is_that_of_the_paper_sizes():
    assert workload.flops_per_patch(Sizes(), "train") == pytest.approx(8.65e6, rel=1e-3)
    assert workload.flops_per_patch(Sizes(), "predict") == pytest.approx(3.93e6, rel=1e-3)


def test_tcga_like_lengths():
    lengths = workload.cohort(workload.TCGA, dataclasses.replace(Sizes(), least_steps=200))
    assert len(lengths) == 200 * 16
    assert np.median(lengths) == pytest.approx(6000, rel=0.05)
    assert np.log(lengths).std() == pytest.approx(0.8, rel=0.05)
    assert lengths.min() >= 300
    assert lengths.max() <= 60_000


def test_fields_of_the_json_of_step(tmp_path):
    result = step.measure(["5"], "float32", 1, TINY, with_torch=False)
    assert result["ceiling_gflops"] > 0
    for mode in ("train", "predict"):
        assert list(result[mode]) == ["5"]
        for row in result[mode].values():
            assert row.keys() >= KEYS
            assert row["slides_per_second"] > 0
            assert row["fraction_of_ceiling"] > 0
            assert row["ratio_to_pytorch"] is None
            assert 0 <= row["padding_waste"] < 1
            assert 1 <= row["compilations"] <= 4
            assert row["compiled_while_timed"] == 0
            assert row["peak_bytes"] > 1e7
    assert speed(result, tmp_path / "speed.png").stat().st_size > 1000


def test_lengths_on_the_command_line():
    assert [step.length(text) for text in ("76", "tcga")] == ["76", "tcga"]
    for wrong in ("0", "-3", "long"):
        with pytest.raises(step.argparse.ArgumentTypeError, match="a number of patches or tcga"):
            step.length(wrong)


def test_picture_shows_both_comparisons():
    def rows(ratio):
        return {"76": {"fraction_of_ceiling": 0.8, "ratio_to_pytorch": ratio}}

    about = {"device": "2 CPU cores", "dtype": "float32"}
    measured = {"train": rows(3.5), "predict": rows(2.0), "ceiling_gflops": 300, "about": about}
    with_torch = speed_figure(measured)
    assert len(with_torch.axes) == 2
    texts = {text.get_text() for axes in with_torch.axes for text in axes.texts}
    assert texts == {"80%", "3.5", "2.0"}
    pytorch_less = speed_figure(measured | {"train": rows(None), "predict": rows(None)})
    assert len(pytorch_less.axes) == 1
    with pytest.raises(ValueError, match="at least one length"):
        speed_figure(measured | {"train": {}})


def test_scaling_over_two_devices(monkeypatch):
    monkeypatch.setattr(scaling, "Worker", InProcess)
    result = scaling.measure(["5"], "float32", 1, TINY)
    rows = result["train"]["5"]
    assert list(rows) == ["1", "2"]
    assert rows["1"]["efficiency"] == 1
    assert rows["1"]["imbalance"] == 0
    assert 0 <= rows["2"]["imbalance"] < 1
    together = result["side_by_side"]["5"]
    expected = together["slides_per_second"] / rows["1"]["slides_per_second"] / 2
    assert together["efficiency"] == pytest.approx(expected)


def test_memory_of_training_and_prediction(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "Worker", InProcess)
    trained = memory.training(TINY, 1, long="90", short="7")
    assert trained["features_bytes"] == 90 * 12 * 4
    assert trained["peak_bytes"] > trained["features_bytes"]
    assert trained["cost_per_patch_ratio"] > 0
    result = memory.prediction(TINY, 100, tmp_path)
    assert list(result) == ["npy", "packed store"]
    for row in result.values():
        assert row["patches"] == 100
        assert row["peak_bytes"] >= row["peak_anonymous_bytes"] > 0


def test_start_of_a_command(tmp_path):
    commands = start.Commands(tmp_path, start.QUICK)
    words = "import sys, time; print('a', file=sys.stderr, flush=True); time.sleep(0.2)"
    to_line = commands.seconds("-c", words, until="a")
    to_end = commands.seconds("-c", words)
    assert 0 < to_line < to_end
    assert to_end > 0.2
    with pytest.raises(RuntimeError, match="ended with 1"):
        commands.seconds("-c", "1 / 0")
    with pytest.raises(RuntimeError, match="ended with 0"):
        commands.seconds("-c", words, until="b")
    began = time.perf_counter()
    parts = commands.parts("pool", ["--list", str(tmp_path / "cohort" / "pool")])
    assert set(parts) == {"to_mark", "after"}
    assert parts["after"] == {}
    assert parts["to_mark"]["imports"] > 0.1
    assert sum(parts["to_mark"].values()) < time.perf_counter() - began
    assert commands.train() != commands.train()
    assert str(tmp_path / "run_2" / "fold_0") in commands.predict()


def test_parts_of_a_start():
    def frame(*names):
        return None if not names else Frame(Code(names[0]), frame(*names[1:]))

    Frame = collections.namedtuple("Frame", "f_code f_back")
    Code = collections.namedtuple("Code", "co_filename")
    part_of = start_probe.part_of
    assert part_of(frame("/x/jax/_src/pjit.py", "/y/steph_jax/engine/step.py")) == (
        "tracing and compilation"
    )
    assert part_of(frame("<frozen importlib._bootstrap>", "/y/steph_jax/plots/style.py")) == (
        "imports"
    )
    assert part_of(frame("/y/steph_jax/checks/models.py", "/y/steph_jax/train.py")) == "checks"
    assert part_of(frame("/y/steph_jax/cli.py")) == part_of(None) == "the rest"


def test_a_worker_that_fails_is_an_error():
    with (
        pytest.raises(RuntimeError, match="Engine ended with status 1"),
        Worker(Engine, "no length", "float32", TINY),
    ):
        pass


@pytest.mark.torch
@pytest.mark.parametrize("length", ["9", "tcga"])
def test_the_pytorch_program_computes_the_same(length):
    from torch_loop import TorchLoop

    jax_engine, torch_loop = Engine(length, "float32", TINY), TorchLoop(length, "float32", TINY)
    size = workload.batch_size(length, TINY)
    np.testing.assert_allclose(
        torch_loop.outputs(), jax_engine.outputs()[:size], rtol=1e-4, atol=1e-5
    )
    batch = jax_engine.loader.batch(range(size), jax_engine.labels)
    gradient, out = jax_engine.gradients(batch)
    assert torch_loop.gradients() == pytest.approx(float(out.loss), rel=1e-4)
    weight = torch_loop.model.embedding.weight.grad.numpy().T
    expected = jax.device_get(gradient["embedding"]["kernel"])
    np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert torch_loop.train() > 0
    assert torch_loop.predict() > 0
