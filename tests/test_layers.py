"""Who imports whom: layers point one way, and each heavy dependency has one home."""

import ast
import pathlib

import pytest

import steph_jax

ROOT = pathlib.Path(steph_jax.__file__).parent
MATHEMATICS = {
    "abmil",
    "products",
    "task_vectors",
    "preparation",
    "hypernetworks",
    "steph",
    "roupkt",
    "losses",
}
HOMES = {
    "h5py": ("data.",),
    "lmdb": ("data.lmdb_files",),
    "orbax": ("checkpoints", "epochs"),
    "lifelines": ("metrics",),
    "matplotlib": ("plots",),
    "optax": ("fitting",),
    "torch": (),
}


def imports():
    """Module -> names it imports anywhere, ours as steph_jax.NAME."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        names = found.setdefault(module, set())
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                names.add(node.module)
                if node.module == "steph_jax" or node.module.startswith("steph_jax."):
                    names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


IMPORTS = imports()


def ours(names):
    return {name.split(".")[1] for name in names if name.startswith("steph_jax.")}


def test_the_mathematics_knows_nothing_of_files_and_settings():
    present = MATHEMATICS & set(IMPORTS)
    assert present >= {"abmil", "task_vectors", "hypernetworks", "steph", "losses"}
    allowed = {"collections", "dataclasses", "functools", "math", "typing", "jax", "flax"}
    for module in present:
        others = {name.split(".")[0] for name in IMPORTS[module]} - {"steph_jax"}
        assert others <= allowed, module
        assert ours(IMPORTS[module]) <= MATHEMATICS, module


def test_data_knows_nothing_of_models():
    for module, names in IMPORTS.items():
        if module.startswith("data."):
            assert ours(names) <= {"data", "labels", "files", "version"}, module
            assert not any(name.split(".")[0] in ("jax", "flax", "optax") for name in names), module


@pytest.mark.parametrize("dependency", HOMES)
def test_heavy_dependencies_have_one_home(dependency):
    users = {
        module
        for module, names in IMPORTS.items()
        if any(name == dependency or name.startswith(f"{dependency}.") for name in names)
    }
    assert all(user.startswith(HOMES[dependency]) for user in users), users


def test_modules_of_the_program_do_not_read_settings():
    entry_points = {
        file.stem for file in ROOT.glob("*.py") if "__main__" in file.read_text(encoding="utf-8")
    }
    for module in {"program", "fitting", "evaluation", "metrics", "checkpoints", "pool"}:
        names = IMPORTS[module]
        assert not any(name.startswith("ml_collections") for name in names), module
        assert not ours(names) & (entry_points | {"settings", "cli"}), module
