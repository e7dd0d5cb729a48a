"""Released PyTorch checkpoints into a pool, by the command that users type."""

import pathlib
import shutil
import subprocess
import sys
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
import released
import torch_writer
from safetensors.numpy import save_file
from torch_writer import Raw

from steph_jax.checkpoints import saved_model
from steph_jax.checkpoints.pool import Pool
from steph_jax.checkpoints.torch_folders import pool_name
from steph_jax.convert import main
from steph_jax.data.torch_format import reader
from steph_jax.models import steph

REPO = pathlib.Path(__file__).resolve().parents[2]
NULL = "Null_model-abmil_gat_attn-MLE_YEAR-fold_0"
FOREIGN = Raw(b"cos\nsystem\n(X\x04\x00\x00\x00exitX\x01\x00\x00\x00xtR")


def member(dataset, fold):
    return f"abmil_gat_attn-MLE_YEAR-data_{dataset}-fold_{fold}"


def write(root, folder, state, **more):
    """A checkpoint in the released layout."""
    path = root / folder / "train_model-last.pth"
    return torch_writer.save(path, {"epoch": 20, "model": OrderedDict(state), **more})


@pytest.fixture
def tree(tmp_path):
    """A small release: theta_0, and a few members."""
    root = tmp_path / "result"
    write(root, NULL, released.abmil(0))
    write(root, member("tcga_a", 0), released.abmil(1), optimizer={"lr": 1e-4})
    write(root, member("tcga_a", 1), released.abmil(2))
    write(root, member("my-own.cohort", 0), released.abmil(3))
    return root


@pytest.fixture
def convert(tmp_path, capsys):
    """Runs the command; returns its status, and what it printed and complained of."""

    def run(*arguments):
        status = main([*map(str, arguments), "--out", str(tmp_path / "pool")])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def written(folder):
    """When each file below a folder was last written."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"a/{NULL}/train_model-last.pth", "null"),
        (f"a/{member('tcga_brca', 3)}/train_model-last.pth", "tcga_brca-fold_3"),
        (f"a/{member('x-data_y-fold_2', 10)}/m.pt", "x-data_y-fold_2-fold_10"),
        (f"{member('tcga_blca', 0)}.pth", "tcga_blca-fold_0"),
        (f"downloads/{NULL}.pth", "null"),
        ("downloads/model.pth", None),
        ("steph-MLE_YEAR-data_tcga_blca-fold_0/train_model-last.pth", None),
    ],
)
def test_names(path, name):
    assert pool_name(pathlib.Path(path)) == name


def test_a_tree_as_released(tree, tmp_path, convert):
    status, out, err = convert(tree)
    assert (status, err) == (0, "")
    pool = Pool(tmp_path / "pool")
    assert pool.names() == ["my-own.cohort-fold_0", "null", "tcga_a-fold_0", "tcga_a-fold_1"]
    assert out.startswith("null: written\n")
    assert "null                  written  abmil (gated, D=12 E=8 A=5 T=4)" in out
    assert out.endswith("pool: 4 written, 0 replaced, 0 unchanged, 0 skipped, 0 failed\n")
    settings = pool.member("tcga_a", 1).metadata
    assert (settings["dataset"], settings["fold"]) == ("tcga_a", 1)
    assert settings["provenance"]["epoch"] == 20
    state = released.abmil(2)
    params = pool.member("tcga_a", 1).params
    np.testing.assert_array_equal(
        params["attention_net"]["attention_b"]["kernel"],
        state["attention_net.attention_b.0.weight"].T,
    )


def test_unchanged_files_are_not_written_again(tree, tmp_path, convert):
    convert(tree)
    before = written(tmp_path / "pool")
    status, out, _ = convert(tree)
    assert status == 0
    assert "0 written, 0 replaced, 4 unchanged" in out
    assert written(tmp_path / "pool") == before
    write(tree, member("tcga_a", 1), released.abmil(9))
    _, out, _ = convert(tree)
    assert "0 written, 1 replaced, 3 unchanged" in out
    np.testing.assert_array_equal(
        Pool(tmp_path / "pool").member("tcga_a", 1).params["pred_head"]["bias"],
        released.abmil(9)["pred_head.bias"],
    )


def test_damaged_models_are_written_again(tree, tmp_path, convert):
    convert(tree)
    shutil.rmtree(tmp_path / "pool" / "null" / "params")
    _, out, _ = convert(tree)
    assert "0 written, 1 replaced, 3 unchanged" in out
    assert Pool(tmp_path / "pool").null().params["pred_head"]["bias"].shape == (4,)


def test_bad_files_among_good_ones(tree, tmp_path, convert):
    whole = (tree / NULL / "train_model-last.pth").read_bytes()
    for dataset, content in (("cut", whole[:3000]), ("page", b"<!DOCTYPE html><p>404")):
        file = tree / member(dataset, 0) / "train_model-last.pth"
        file.parent.mkdir()
        file.write_bytes(content)
    write(tree, member("wide", 0), released.abmil(4, feature_dim=20))
    write(tree, member("nan", 0), released.abmil(5) | {"pred_head.bias": np.full(4, np.nan, "f4")})
    (tree / "notes.pt").write_bytes(whole)
    status, out, err = convert(tree, tmp_path / "nowhere.pth")
    assert status == 1
    assert "4 written, 0 replaced, 0 unchanged, 1 skipped, 5 failed" in out
    assert Pool(tmp_path / "pool").names() == [
        "my-own.cohort-fold_0",
        "null",
        "tcga_a-fold_0",
        "tcga_a-fold_1",
    ]
    lines = err.splitlines()
    assert lines[0] == "error: 5 of 10 files could not be converted"
    assert len(lines) == 6
    for words in (
        f"{member('cut', 0)}/train_model-last.pth: expected a PyTorch file",
        f"{member('nan', 0)}/train_model-last.pth: NaN or infinity in pred_head.bias",
        f"{member('page', 0)}/train_model-last.pth: expected a PyTorch file, found an HTML page",
        f"{member('wide', 0)}/train_model-last.pth: ",
        "feature_dim 20 and 12; models of a pool must share all of them",
        "nowhere.pth: no such file or directory",
    ):
        assert words in err
    assert [path.name for path in (tmp_path / "pool").glob(".*")] == [".lock"]


def test_foreign_globals(tree, tmp_path, convert):
    write(tree, member("tcga_a", 0), released.abmil(1), optimizer={"x": [FOREIGN]}, args=FOREIGN)
    status, _, err = convert(tree)
    assert status == 0
    assert "last.pth: skipped in `optimizer`, never called: os.system\n" in err
    assert "last.pth: skipped in `args`, never called: os.system\n" in err
    hostile = write(tree, member("tcga_b", 0), {**released.abmil(1), "x": FOREIGN})
    status, _, err = convert(tree)
    assert status == 1
    assert f"error: {hostile}, in `model`: expected tensors and plain containers, found" in err
    assert "os.system, which was not called" in err
    assert "tcga_b-fold_0" not in Pool(tmp_path / "pool").names()


def test_names_of_the_users_own(tmp_path, convert):
    file = torch_writer.save(tmp_path / "model.pt", released.abmil())
    status, out, err = convert(file)
    assert status == 1
    assert "its name has neither dataset nor fold" in err
    assert "give it alone, with --name NAME" in err
    status, out, err = convert(file, "--name", "mine-fold_0")
    assert status == 0
    assert "the pool has no null model yet" in err
    assert "mine-fold_0  written" in out
    status, _, err = convert(file, file.parent, "--name", "null")
    assert status == 0
    copy = shutil.copy(file, tmp_path / "copy.pt")
    status, _, err = convert(file, copy, "--name", "null")
    assert (status, err) == (1, "error: --name names one model, found 2 files; give one file\n")
    status, _, err = convert(file, "--name", "../outside")
    assert status == 1
    assert "a model cannot be named '../outside'" in err


def test_directories_without_checkpoints(tmp_path, convert):
    (tmp_path / "empty").mkdir()
    status, _, err = convert(tmp_path / "empty")
    assert status == 1
    assert "empty: no checkpoint in this directory" in err
    torch_writer.save(tmp_path / "features" / "slide.pt", {"features": np.zeros((2, 3), "f4")})
    status, _, err = convert(tmp_path / "features")
    assert status == 1
    assert "slide.pt: its name has neither dataset nor fold" in err


def test_of_several_checkpoints_in_a_folder_the_last_counts(tree, tmp_path, convert):
    folder = tree / member("tcga_a", 0)
    torch_writer.save(folder / "train_model-best.pth", {"model": released.abmil(8)})
    assert convert(tree)[0] == 0
    np.testing.assert_array_equal(
        Pool(tmp_path / "pool").member("tcga_a", 0).params["pred_head"]["bias"],
        released.abmil(1)["pred_head.bias"],
    )
    twice = tmp_path / "again" / member("tcga_a", 0)
    shutil.copytree(folder, twice)
    status, _, err = convert(tree, twice)
    assert status == 1
    assert "would become tcga_a-fold_0, as would" in err


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"epoch": 3},
            "expected a checkpoint with `model`, `state_dict` or tensors by name, found",
        ),
        ({"model": [1, 2]}, "expected tensors by name in `model`, found a list"),
        ({"model": {"a": 1}}, "expected tensors by name in `model`, found none under a"),
        ([1], "or tensors by name, found a list; save a state dict with torch.save"),
        (FOREIGN, "found os.system, which was not called"),
        ({"model": {}}, "(10 missing, 0 unexpected, 0 misshapen)"),
    ],
)
def test_files_that_hold_no_model(tmp_path, convert, value, message):
    file = torch_writer.save(tmp_path / "x.pth", value)
    status, _, err = convert(file, "--name", "x")
    assert status == 1
    assert str(file) in err
    assert message in err


def test_models_are_stored_in_float32(tmp_path, convert):
    state = {name: value.astype(ml_dtypes.bfloat16) for name, value in released.abmil().items()}
    assert convert(torch_writer.save(tmp_path / "x.pth", {"model": state}), "--name", "x")[0] == 0
    bias = saved_model.load_model(tmp_path / "pool" / "x").params["pred_head"]["bias"]
    assert bias.dtype == np.float32
    np.testing.assert_array_equal(bias, state["pred_head.bias"].astype("f4"))


def test_float64_beyond_float32_is_refused(tmp_path, convert):
    state = {name: value.astype("f8") for name, value in released.abmil().items()}
    state["feat_proj.0.weight"][2, 3] = 1e300
    file = torch_writer.save(tmp_path / "x.pth", {"model": state})
    status, _, err = convert(file, "--name", "x")
    assert status == 1
    assert f"{file}: feat_proj.0.weight holds 1e+300 (float64), beyond the range of float32" in err
    assert not list((tmp_path / "pool").glob("*"))


@pytest.mark.parametrize("ending", [".pth", ".pt", ".ckpt", ".safetensors"])
def test_files_of_every_ending_in_a_folder(tmp_path, convert, ending):
    folder = tmp_path / "result" / member("tcga_a", 2)
    file = torch_writer.save(folder / f"last{ending}", {"state_dict": released.abmil(3)})
    if ending == ".safetensors":
        save_file(released.abmil(3), file)
    else:
        torch_writer.save(folder / f"epoch=3{ending}", {"state_dict": released.abmil(4)})
    assert convert(tmp_path / "result")[0] == 0
    model = saved_model.load_model(tmp_path / "pool" / "tcga_a-fold_2")
    bias = released.abmil(3)["pred_head.bias"]
    np.testing.assert_array_equal(model.params["pred_head"]["bias"], bias)


def test_two_checkpoints_for_one_name_are_named(tmp_path, convert):
    folder = tmp_path / "result" / member("tcga_a", 2)
    for epoch in (3, 4):
        torch_writer.save(folder / f"epoch={epoch}.ckpt", {"state_dict": released.abmil(3)})
    status, _, err = convert(tmp_path / "result")
    assert status == 1
    assert "epoch=4.ckpt: would become tcga_a-fold_2, as would" in err
    assert "epoch=3.ckpt; give one of them" in err


def test_models_without_attention(tmp_path, convert):
    root = tmp_path / "result"
    null = torch_writer.save(tmp_path / "null.pth", {"model": released.abmil(0, "max")})
    status, _, err = convert(null, "--name", "null")
    assert status == 0
    assert "no attention tensors: taken for mean pooling; --pooling max if it is not" in err
    status, out, err = convert(null, "--name", "null", "--pooling", "max")
    assert (status, err) == (0, "")
    assert "null   replaced  abmil (max, D=12 E=8 T=4)" in out
    status, out, err = convert(
        write(root, "abmil_max-MLE_YEAR-data_tcga_a-fold_0", released.abmil(1, "max"))
    )
    assert (status, err) == (0, "")
    assert Pool(tmp_path / "pool").member("tcga_a", 0).architecture.pooling == "max"
    status, _, err = convert(write(root, member("tcga_b", 0), released.abmil(2, "max")))
    assert status == 1
    assert "no attention tensors (attention_net.*), contrary to its name" in err


# Trained STEPH models.


def test_steph_model_with_the_defaults_of_the_paper(tmp_path, convert):
    state = released.steph(6)
    file = torch_writer.save(tmp_path / "x.pth", {"epoch": 20, "model": state})
    status, out, err = convert(file, "--name", "steph-brca")
    assert (status, err) == (0, "")
    assert "steph (gated, D=12 E=8 A=5 T=4, 6 sources, top 5)" in out
    model = saved_model.load_model(tmp_path / "pool" / "steph-brca")
    assert model.kind == "steph"
    assert steph.Options(**model.metadata["options"]) == steph.Options()
    assert model.metadata["sources"] == [f"source_{i}" for i in range(6)]
    np.testing.assert_array_equal(
        model.params["trainable"]["mixing"]["output"]["kernel"], state["vecmix_layer.3.weight"].T
    )
    assert convert(file, "--name", "steph-brca")[1].count("unchanged") == 3
    _, out, _ = convert(file, "--name", "steph-brca", "--top-k", 2)
    assert "replaced" in out


def test_steph_model_with_every_import_flag(tmp_path, convert):
    state = released.steph(3, "fix", retrained=False, merged="all")
    file = torch_writer.save(tmp_path / "x.pth", {"model": state})
    flags = "--sources a,b,c --top-k 0 --weight-output softplus --clamp --mixing fix"
    more = "--base target --merged all --dataset tcga_x --fold 2"
    status, _, err = convert(file, "--name", "s", *flags.split(), *more.split())
    assert (status, err) == (0, "")
    settings = saved_model.load_model(tmp_path / "pool" / "s").metadata
    assert steph.Options(**settings["options"]) == steph.Options(
        top_k=0,
        weight_output="softplus",
        clamp=True,
        mixing="fix",
        fixed_mixing=tuple(1 / (1 + r) for r in (0.25, 0.5, 0.75)),
        base="target",
        merged="all",
        retrained="none",
    )
    assert settings["sources"] == ["a", "b", "c"]
    assert (settings["dataset"], settings["fold"]) == ("tcga_x", 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "steph.top_k = 5 is larger than the number of sources, 3"),
        ("--top-k 2 --sources a,b", "expected --sources with 3 different names"),
        ("--top-k 2 --sources a,b,b", "expected --sources with 3 different names"),
        ("--top-k 2 --mixing fnn", "--mixing fnn, but its tensors are those of nn"),
        ("--top-k 2 --merged all", "but its target_task_vector holds the tensors of mil_encoder"),
        ("--top-k -1", "steph.top_k is a number of sources or 0 for all, not -1"),
    ],
)
def test_contradictory_steph_flags(tmp_path, convert, flags, message):
    file = torch_writer.save(tmp_path / "x.pth", {"model": released.steph(3)})
    status, _, err = convert(file, "--name", "s", *flags.split())
    assert status == 1
    assert message in err


@pytest.mark.parametrize("merged", ["mil_encoder", "all", "pred_head"])
def test_merged_parts_come_from_the_file(tmp_path, convert, merged):
    state = released.steph(3, retrained=merged != "pred_head", merged=merged)
    file = torch_writer.save(tmp_path / "x.pth", {"model": state})
    for flags in ((), ("--merged", merged)):
        assert convert(file, "--name", "s", "--top-k", 0, *flags)[0] == 0
        settings = saved_model.load_model(tmp_path / "pool" / "s").metadata
        assert settings["options"]["merged"] == merged


@pytest.mark.parametrize("mixing", ["nn", "fnn", "param", "fix"])
def test_exports_of_our_first_versions(tmp_path, convert, mixing):
    older = torch_writer.save(tmp_path / "a.pth", {"model": released.older_export(3, mixing)})
    flags = ["--top-k", 2, *(["--mixing", "fix"] if mixing == "fix" else [])]
    status, out, err = convert(older, "--name", "older", *flags, "--merged", "all")
    assert (status, err) == (0, "")
    assert "steph (gated, D=12 E=8 A=5 T=4, 3 sources, top 2)" in out
    model = saved_model.load_model(tmp_path / "pool" / "older")
    options = steph.Options(**model.metadata["options"])
    assert options.merged == "all"
    assert options.mixing == mixing
    if mixing == "fix":  # lambda itself
        assert options.fixed_mixing == (0.25, 0.5, 0.75)
    heads = released.older_export(3, mixing, with_heads=False)
    without = torch_writer.save(tmp_path / "b.pth", {"model": heads})
    assert convert(without, "--name", "without", *flags)[0] == 0
    status, _, err = convert(without, "--name", "without", *flags, "--merged", "all")
    assert status == 1
    assert "--merged all, but its task vectors have no pred_head" in err


@pytest.mark.parametrize("kind", ["fix", "learned", "dynamic"])
def test_rules_without_mixup(tmp_path, convert, kind):
    file = torch_writer.save(tmp_path / "x.pth", {"model": released.rule(kind)})
    status, out, err = convert(file, "--name", "r", "--sources", "a,b,c")
    assert (status, err) == (0, "")
    assert f"{kind} (gated, D=12 E=8 A=5 T=4, 3 sources)" in out
    assert saved_model.load_model(tmp_path / "pool" / "r").metadata["sources"] == ["a", "b", "c"]
    status, _, err = convert(file, "--name", "r", "--top-k", 2, "--weight-output", "sigmoid")
    assert status == 0
    unused = "--top-k" if kind == "dynamic" else "--top-k, --weight-output"
    assert f"not used, as a model of kind {kind} has no such option: {unused}\n" in err


def test_steph_model_never_takes_the_place_of_a_member(tmp_path, convert):
    file = write(tmp_path / "result", member("tcga_a", 0), released.steph())
    status, _, err = convert(file)
    assert status == 1
    assert (
        "a trained merged model (STEPH or another rule), which cannot be the pool's tcga_a-fold_0"
        in err
    )


# The program, and the files of the published one.


def test_the_script(tree, tmp_path):
    command = [sys.executable, str(REPO / "convert_torch_ckpt.py"), str(tree), "--out", "pool"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 written" in done.stdout
    assert (tmp_path / "pool" / "tcga_a-fold_1" / "model.json").is_file()


def test_the_published_checkpoints(parity, tmp_path, convert):
    names = (NULL, member("tcga_lihc", 0), member("tcga_kirc", 3))
    status, _, err = convert(*(parity / "result" / name for name in names))
    assert (status, err) == (0, "")
    pool = Pool(tmp_path / "pool")
    assert pool.names() == ["null", "tcga_kirc-fold_3", "tcga_lihc-fold_0"]
    model = pool.member("tcga_kirc", 3)
    assert sum(x.size for _, x in leaves(model.params)) == 1_197_729
    file = parity / "result" / member("tcga_kirc", 3) / "train_model-last.pth"
    state = reader.load(file)["model"]
    tensors = dict(leaves(model.params))
    for name, place in {
        "feat_proj.0": "feat_proj/layers_0",
        "attention_net.attention_a.0": "attention_net/attention_a",
        "attention_net.attention_b.0": "attention_net/attention_b",
        "attention_net.attention_c": "attention_net/attention_c",
        "pred_head": "pred_head",
    }.items():
        np.testing.assert_array_equal(tensors.pop(f"{place}/kernel"), state[f"{name}.weight"].T)
        np.testing.assert_array_equal(tensors.pop(f"{place}/bias"), state[f"{name}.bias"])
    assert not tensors


def leaves(tree, prefix=""):
    for name, leaf in tree.items():
        if isinstance(leaf, dict):
            yield from leaves(leaf, f"{prefix}{name}/")
        else:
            yield prefix + name, leaf


@pytest.mark.torch
@pytest.mark.parametrize("as_zip", [True, False])
def test_checkpoints_of_live_torch(tmp_path, convert, as_zip):
    torch = pytest.importorskip("torch")
    state = OrderedDict((n, torch.from_numpy(v)) for n, v in released.abmil(4).items())
    parameters = [torch.nn.Parameter(value) for value in state.values()]
    optimizer = torch.optim.AdamW(parameters)
    sum((p**2).sum() for p in parameters).backward()
    optimizer.step()
    checkpoint = {"model": state, "optimizer": optimizer.state_dict(), "epoch": 1}
    torch.save(checkpoint, tmp_path / "x.pth", _use_new_zipfile_serialization=as_zip)
    status, _, err = convert(tmp_path / "x.pth", "--name", "null")
    assert (status, err) == (0, "")
    null = Pool(tmp_path / "pool").null()
    np.testing.assert_array_equal(
        null.params["feat_proj"]["layers_0"]["kernel"], state["feat_proj.0.weight"].numpy().T
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [([], "required: SRC, --out"), (["a.pth", "--out", "p", "--top-k", "x"], "'x'")],
)
def test_usage_errors_are_one_line(flags, message, capsys):
    assert main(flags) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_file_is_named_by_its_folder_from_within_too(tree, tmp_path, convert, monkeypatch):
    file = next(tree.rglob("Null_model*/*.pth"))
    monkeypatch.chdir(file.parent)
    status, _, _ = convert(file.name)
    assert status == 0
    assert (tmp_path / "pool" / "null").is_dir()
