"""Who imports whom: folders point one way, and each heavy dependency has one home."""

import ast
import pathlib

import pytest

import steph_jax

ROOT = pathlib.Path(steph_jax.__file__).parent
#: Folders and shared files, each of which may import those before it and itself.
ORDER = (
    "interrupts",
    "messages",
    "hosts",
    "locks",
    "files",
    "records",
    "config_files",
    "run_directory",
    "models",
    "survival",
    "data",
    "plots",
    "checkpoints",
    "engine",
    "methods",
    "checks",
    "evaluation",
    "formats",
    "heatmaps",
    "reports",
    "trackers",
    "training",
    "jobs",
)
#: What a folder may not import although it stands before it in `ORDER`.
STRANGERS = {
    "survival": {"locks", "files", "records", "run_directory"},
    "data": {"models", "run_directory"},
    "plots": {"models", "data", "run_directory"},
    "trackers": {*("models", "survival", "data", "plots", "checkpoints", "engine", "methods")},
    "training": {"checks"},
}
MATHEMATICS = {
    *("collections", "dataclasses", "functools", "math", "typing"),
    *("jax", "flax", "jaxtyping"),
}
HOMES = {
    "h5py": ("data.",),
    "lmdb": ("data.features.lmdb_source",),
    "orbax": ("checkpoints.arrays",),
    "lifelines": ("survival.",),
    "matplotlib": ("plots", "reports.pages"),
    "jinja2": ("reports.pages",),
    "filelock": ("locks",),
    "yaml": ("formats.model_card",),
    "openslide": ("heatmaps.wsi",),
    "submitit": ("jobs.process",),
    "optax": ("training.epoch",),
    "ml_collections": ("cli", "training.config"),
    "tensorboardX": ("trackers.tensorboard",),
    "wandb": ("trackers.weights_and_biases",),
    "mlflow": ("trackers.mlflow_store",),
    "torch": (),
}


def modules():
    """Name below steph_jax -> file, of every module."""
    imports_by_module = {}
    for file in sorted(ROOT.rglob("*.py")):
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        imports_by_module[name.removesuffix("__init__").removesuffix(".")] = file
    return imports_by_module


def imports():
    """Module -> dotted names it imports anywhere, ours as steph_jax.NAME."""
    names = {}
    for module, file in modules().items():
        names[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names[module] |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{file}: relative import"
                names[module].add(node.module)
                if node.module.split(".")[0] == "steph_jax":
                    names[module] |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


IMPORTS = imports()
FOLDERS = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
PROGRAMS = {
    file.stem for file in ROOT.glob("*.py") if "__main__" in file.read_text(encoding="utf-8")
}


def folders_of(module):
    """Folders and top-level files of ours that a module imports."""
    top = {name.split(".")[1] for name in IMPORTS[module] if name.startswith("steph_jax.")}
    return {name for name in top if name in FOLDERS or (ROOT / f"{name}.py").is_file()}


def test_top_folder_has_only_programs_and_shared_files():
    files = {file.stem for file in ROOT.glob("*.py")} - {"__init__", "__main__"}
    assert files - PROGRAMS == {
        "cli",
        "config_files",
        "files",
        "interrupts",
        "locks",
        "messages",
        "records",
        "run_directory",
    }
    assert set(ORDER) - files == FOLDERS


def test_files_have_350_lines_at_most():
    lengths = {file: file.read_text(encoding="utf-8").count("\n") for file in ROOT.rglob("*.py")}
    assert len(lengths) > 200
    assert not {str(file): length for file, length in lengths.items() if length > 350}


@pytest.mark.parametrize("module", sorted(IMPORTS))
def test_imports_run_one_way(module):
    place = module.split(".")[0]
    if place not in ORDER:  # a program, which may import anything
        return
    allowed = set(ORDER[: ORDER.index(place) + 1]) - STRANGERS.get(place, set())
    assert folders_of(module) <= allowed


def test_modules_form_no_cycle():
    modules = set(IMPORTS)
    graph = {}
    for module, names in IMPORTS.items():
        imported = {
            name.removeprefix("steph_jax.") for name in names if name.startswith("steph_jax.")
        }
        graph[module] = (imported & modules) - {module}
    done, open_ = set(), []

    def visit(module):
        if module in done:
            return
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        open_.append(module)
        for other in graph[module]:
            visit(other)
        done.add(open_.pop())

    for module in graph:
        visit(module)


def test_the_mathematics_imports_jax_and_flax_alone():
    for module in (name for name in IMPORTS if name.startswith("models.")):
        others = {name.split(".")[0] for name in IMPORTS[module]} - {"steph_jax"}
        assert others <= MATHEMATICS, module


def test_data_imports_no_jax():
    for module in (name for name in IMPORTS if name.startswith("data.")):
        roots = {name.split(".")[0] for name in IMPORTS[module]}
        assert not roots & {"jax", "flax", "optax", "orbax"}, module


@pytest.mark.parametrize("dependency", HOMES)
def test_heavy_dependencies_have_one_home(dependency):
    users = {
        module
        for module, names in IMPORTS.items()
        if any(name == dependency or name.startswith(f"{dependency}.") for name in names)
    } - PROGRAMS
    assert all(user.startswith(HOMES[dependency]) for user in users), users
