"""The typed config: what it refuses, in one line that names the setting, and what it keeps."""

import copy
import pathlib
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from configs import default
from steph_jax import run_directory
from steph_jax.methods import registry
from steph_jax.training import config as configs
from steph_jax.training.config import Config, as_dict, read_config, stored_config

ROOT = pathlib.Path(default.__file__).parents[1]
RECORD = as_dict(default.get_config())
SETTINGS = run_directory.flatten(RECORD)
#: Sections that every run reads, and those that belong to methods.
SHARED = ("data", "data.columns", "bins", "evaluate", "pool", "model", "validation", "loss")
OF_METHODS = (
    "steph",
    "merging",
    "transfer",
    "roupkt",
    "linear",
    "linear_pool",
    "clinical_cox",
    "rescaled",
    "mean_pool",
)


def changed(name, value=None, remove=False):
    """The default config with another value of a setting or section, or without it."""
    record = copy.deepcopy(RECORD)
    *within, last = name.split(".")
    place = record
    for section in within:
        place = place[section]
    place.pop(last)
    if not remove:
        place[last] = value
    return record


def refused(record, *words):
    """The message of a config that is refused, one line in which some words are."""
    with pytest.raises(ValueError) as error:
        Config.from_dict(record)
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []
    return message


def test_every_section_of_the_default_is_known():
    sections = {name.rpartition(".")[0] for name in SETTINGS} - {""}
    assert sections == {*SHARED, *OF_METHODS}


@pytest.mark.parametrize("name", [*SETTINGS, *SHARED])
def test_missing_setting_is_named(name):
    refused(changed(name, remove=True), f"{name} is missing: expected ", "configs/default.py")


@pytest.mark.parametrize("name", [*SETTINGS, *SHARED, *OF_METHODS])
def test_none_is_named(name):
    refused(changed(name, None), f"{name}: expected ", "found None")


@pytest.mark.parametrize("name", [*SETTINGS, *SHARED, *OF_METHODS])
def test_other_type_is_named(name):
    others = [{"a": 1}, 3.25, "text", True, [None], ["a", 1]]
    own = SETTINGS.get(name, {})
    for value in others:
        kinds = (int, float) if type(own) is float else (type(own),)
        if type(value) not in kinds:
            refused(changed(name, value), f"{name}: expected ", "found")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400])
def test_number_that_is_not_finite_is_named(value):
    refused(changed("learning_rate", value), "learning_rate: expected a finite number")


@pytest.mark.parametrize(
    "name",
    [
        "epochs",
        "warmup_epochs",
        "batch_size",
        "bins.number",
        "model.feature_dim",
        "model.embed_dim",
        "model.attention_dim",
        "model.num_layers",
    ],
)
@pytest.mark.parametrize("value", [10**9, 2**70, -1])
def test_size_is_bounded(name, value):
    refused(changed(name, value), f"{name} is", str(value)[-12:])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("method", "stef", "method is one of abmil, mean_pool,"),
        ("dataset", "", "dataset is the name of a folder"),
        ("dataset", "a\nb", "dataset is the name of a folder"),
        ("folds", [], "folds are numbers of splits files"),
        ("folds", [0, 0], "a fold is named twice"),
        ("sources", ["a,b"], "sources are names of datasets"),
        ("sources", ["a", "a"], "a source is named twice"),
        ("seed", -1, "seed is 0 or more, below 2^63"),
        ("learning_rate", 0.0, "learning_rate is a number above 0"),
        ("weight_decay", -1.0, "weight_decay is a number 0 or more"),
        ("eval_every", -1, "eval_every is a whole number from 0"),
        ("compute_dtype", "float16", "compute_dtype is float32 or bfloat16"),
        ("data.cache_gb", -1.0, "data.cache_gb is a number, 0 or more"),
        ("data.device_gb", -3.0, "data.device_gb is 0 or more, or -1"),
        ("data.features", "x/{cohort}", "data.features may hold {dataset} and {root}"),
        ("data.time_unit", "weeks", "data: the time unit is one of"),
        ("data.columns.time", "e", "data: four different columns"),
        ("bins.kind", "log", "bins.kind is one of uniform"),
        ("bins.width_days", 0.0, "bins.width_days is a number above 0"),
        ("model.pooling", "sum", "model.pooling is one of"),
        ("validation.select", "auc", "validation.select is one of"),
        ("loss.terms", [["x", 1.0]], "loss: losses are nll"),
        ("loss.merge_weight", -0.1, "loss.merge_weight is a number 0 or more"),
        ("loss.mix_weight", -0.1, "loss.mix_weight is a number 0 or more"),
        ("steph.mixing", "x", "steph.mixing is one of"),
        ("merging.prepare", "dare", "merging.prepare is one of none"),
        ("roupkt.expert", "gelu", "roupkt.expert is one of"),
    ],
)
def test_value_that_no_run_can_use(name, value, message):
    refused(changed(name, value), message)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("epoch", "epochs"),
        ("stpeh", "steph"),
        ("data.cach_gb", "data.cache_gb"),
        ("data.columns.patients", "data.columns.patient"),
        ("merging.prepared", "merging.prepare"),
        ("model.num_bins", "model.num_layers"),
    ],
)
def test_unknown_setting_is_refused_with_near_ones(name, near):
    record = copy.deepcopy(RECORD)
    *within, last = name.split(".")
    place = record
    for section in within:
        place = place[section]
    place[last] = 1
    refused(record, f"no setting is called {name}; near are ", near)


def test_every_problem_is_found_at_once():
    record = changed("epochs", None) | {"method": "stef", "steph": {"top_k": -1}}
    config, problems = read_config(record)
    assert config is not None
    assert config.data == Config.from_dict(RECORD).data
    assert {"epochs", "method"} <= set(problems)
    assert any("steph" in message for message in problems.values())
    without, problems = read_config(changed("dataset", 3))
    assert (without, list(problems)) == (None, ["dataset"])


def test_dataclasses_have_the_defaults_of_the_default_config():
    """A setting that an earlier run did not store has the value of configs/default.py."""
    bare = {name: RECORD[name] for name in ("dataset", "method", "folds", "seed")}
    bare["data"] = {}
    filled = Config.from_stored(bare, pathlib.Path("config.json"))
    whole = Config.from_dict(RECORD)
    for field in ("sources", "epochs", "batch_size", "learning_rate", "warmup_epochs"):
        assert getattr(filled, field) == getattr(whole, field)
    for field in ("weight_decay", "eval_every", "compute_dtype", "options"):
        assert getattr(filled, field) == getattr(whole, field)
    for section in ("data", "bins", "pool", "model", "validation", "loss"):
        assert getattr(filled, section) == getattr(whole, section)
    for method in registry.METHODS.values():
        assert configs.read_options(method, RECORD) == method.options_type()


def test_record_equals_the_input():
    config = Config.from_dict(RECORD)
    assert config.record == RECORD
    assert config.settings == SETTINGS
    assert configs.defaults().keys() == SETTINGS.keys() - {"dataset", "method"}


def test_run_stored_without_a_setting_resumes_with_its_default(tmp_path):
    old = copy.deepcopy(RECORD)
    del old["steph"]["initial_weight"], old["roupkt"]
    run_directory.files.write_json(tmp_path / "config.json", old)
    run_directory.store_config(tmp_path, RECORD, configs.MAY_CHANGE_ON_RESUME, configs.defaults())
    assert run_directory.load(tmp_path) == RECORD
    run_directory.files.write_json(tmp_path / "config.json", old)
    other = changed("steph.initial_weight", 0.5)
    with pytest.raises(ValueError, match=r"steph\.initial_weight: 0\.0 then, 0\.5 now"):
        run_directory.store_config(
            tmp_path, other, configs.MAY_CHANGE_ON_RESUME, configs.defaults()
        )
    assert run_directory.load(tmp_path) == old


def test_other_values_by_dotted_names():
    config = Config.from_dict(RECORD)
    other = config.with_values({"steph.top_k": 2, "epochs": 3, "data.root": "elsewhere"})
    assert (other.options.steph.top_k, other.epochs, other.data.root) == (2, 3, "elsewhere")
    flat = SETTINGS | {"steph.top_k": 2, "epochs": 3, "data.root": "elsewhere"}
    assert run_directory.flatten(other.record) == flat
    assert config.record == RECORD
    with pytest.raises(ValueError, match=r"steph.top_k: expected a whole number; found 'x'"):
        config.with_values({"steph.top_k": "x"})


def test_methods_section_may_be_left_out():
    record = {name: value for name, value in RECORD.items() if name not in OF_METHODS}
    assert Config.from_dict(record).options == Config.from_dict(RECORD).options


def test_stored_config_of_another_version(tmp_path):
    """Settings that it did not have take their defaults, those that are no more are not read."""
    stored = {name: value for name, value in RECORD.items() if name != "validation"}
    stored = stored | {"sweep": ["epochs=1,2"], "steph": {"top_k": 3}}
    run_directory.files.write_json(tmp_path / "config.json", stored)
    config = stored_config(tmp_path)
    assert config.validation == Config.from_dict(RECORD).validation
    assert config.options.steph.top_k == 3


@pytest.mark.parametrize("name", ["dataset", "method", "folds", "seed", "data"])
@pytest.mark.parametrize("remove", [True, False])
def test_stored_config_without_settings_of_evaluation(tmp_path, name, remove):
    run_directory.files.write_json(tmp_path / "config.json", changed(name, None, remove))
    with pytest.raises(ValueError, match=rf"config\.json: {name}( is missing)?: expected [^\n]*$"):
        stored_config(tmp_path)


def test_config_that_json_cannot_hold_is_refused():
    config = ConfigDict({"data": {"root": pathlib.Path("data")}})
    with pytest.raises(ValueError, match=r"data\.root: expected text.*of type PosixPath"):
        as_dict(config)
    with pytest.raises(ValueError, match=r"get_config .* returns an ml_collections.ConfigDict"):
        as_dict({"dataset": "a"})
    assert as_dict(ConfigDict({"a": (1, (2.0, "b"))})) == {"a": [1, [2.0, "b"]]}


def test_config_file_that_is_not_there_is_one_line(tmp_path):
    command = [sys.executable, "-m", "steph_jax.pack", "--out", str(tmp_path / "x.store")]
    command += ["--config", str(tmp_path / "none.py")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path / 'none.py'}: expected a Python file of settings" in done.stderr


@pytest.mark.parametrize("program", ["train", "transfer", "compare", "pack", "check"])
def test_program_ends_with_one_line(tmp_path, program):
    file = tmp_path / "broken.py"
    file.write_text(
        "from configs import default\n"
        "def get_config():\n"
        "    config = default.get_config()\n"
        "    config.epochs = 10**9\n"
        "    return config\n"
    )
    more = {"compare": ["--methods", "abmil"], "pack": ["--out", str(tmp_path / "x.store")]}
    command = [sys.executable, "-m", f"steph_jax.{program}", "--config", str(file)]
    if program not in ("pack", "check"):
        command += ["--workdir", str(tmp_path / "w")]
    done = subprocess.run(
        [*command, *more.get(program, [])], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == (2 if program == "check" else 1), done.stderr
    output = done.stdout if program == "check" else done.stderr
    assert "epochs is a whole number from 1 to 100000; found 1000000000" in output
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "w").exists()
