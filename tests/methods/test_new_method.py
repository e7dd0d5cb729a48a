"""A method with options of its own: its file and one line in the registry are all it takes."""

import dataclasses

import jax
import pools
import pytest

from steph_jax import train
from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.saved_model import SavedModel
from steph_jax.methods import abmil, registry
from steph_jax.methods.base import FoldSpec, with_metadata
from steph_jax.training.config import Config


# What the file of a method would hold: `shrunk` trains ABMIL from a null model that is scaled.
@dataclasses.dataclass(frozen=True)
class Shrinkage:
    """The section `shrunk` of a config."""

    factor: float = 0.5
    parts: tuple[str, ...] = ("feat_proj", "attention_net", "pred_head")

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"shrunk.factor is a number above 0; found {self.factor}")


@dataclasses.dataclass(frozen=True)
class Options:
    """The sections that the method reads."""

    shrunk: Shrinkage = dataclasses.field(default_factory=Shrinkage)


def start(spec: FoldSpec[Options], pool: Pool) -> SavedModel:
    """theta_0 times a factor."""
    model, options = abmil.start(spec, pool), spec.options.shrunk
    scaled = jax.tree.map(lambda x: x * x.dtype.type(options.factor), model.params)
    params = model.params | {name: scaled[name] for name in options.parts}
    model = dataclasses.replace(model, params=params)
    return with_metadata(model, factor=options.factor, parts=list(options.parts))


METHOD = dataclasses.replace(abmil.METHOD, name="shrunk", start=start, options_type=Options)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The line in the registry."""
    monkeypatch.setitem(registry.METHODS, METHOD.name, METHOD)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return pools.make(tmp_path_factory.mktemp("home"))


SECTION = {"shrunk": {"factor": 0.25, "parts": ["pred_head"]}}


@pytest.mark.parametrize(("section", "factor"), [(SECTION, 0.25), ({}, 0.5)])
def test_fold_of_a_new_method(home, tmp_path, section, factor):
    config = pools.config(home) | {"method": "shrunk", "folds": [0]} | section
    summary = train.train(config, tmp_path)
    model = saved_model.load_model(tmp_path / "fold_0" / "model")
    assert (summary["method"], model.metadata["factor"]) == ("shrunk", factor)
    assert len(model.metadata["parts"]) == (1 if section else 3)


def test_options_of_a_new_method_are_checked_and_swept(home, tmp_path):
    record = pools.config(home) | {"method": "shrunk", "folds": [0]}
    config = Config.from_dict(record)
    assert config.options == Options()
    assert config.with_values({"shrunk.factor": 2.0}).options.shrunk.factor == 2.0
    for value, message in (
        (0.0, r"shrunk.factor is a number above 0; found 0.0"),
        ("much", r"shrunk.factor: expected a finite number; found 'much'"),
        (None, r"shrunk.factor: expected a finite number; found None"),
    ):
        with pytest.raises(ValueError, match=message):
            Config.from_dict(record | {"shrunk": {"factor": value, "parts": []}})
    with pytest.raises(ValueError, match=r"no setting is called shrunk.factr; near are shrunk.f"):
        Config.from_dict(record | {"shrunk": {"factor": 1.0, "parts": [], "factr": 1.0}})
    train.train(record, tmp_path, ["shrunk.factor=0.5,1.0"])
    model = saved_model.load_model(tmp_path / "fold_0" / "model")
    assert model.metadata["factor"] in (0.5, 1.0)


def test_section_of_a_method_that_is_not_registered_is_refused(home, monkeypatch):
    monkeypatch.delitem(registry.METHODS, METHOD.name)
    with pytest.raises(ValueError, match="no setting is called shrunk"):
        Config.from_dict(pools.config(home) | {"shrunk": {"factor": 0.5}})


def test_model_of_a_method_that_is_not_registered_is_named(home, tmp_path, monkeypatch):
    pool = Pool(home / "pool")
    saved_model.save_model(tmp_path / "m", dataclasses.replace(pool.null(), kind="shrunk"))
    assert registry.load_model(tmp_path / "m").kind == "shrunk"
    monkeypatch.delitem(registry.METHODS, METHOD.name)
    with pytest.raises(ValueError, match=r"/m: a model of kind 'shrunk'; this version runs abmil"):
        registry.load_model(tmp_path / "m")
