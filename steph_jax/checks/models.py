"""The pool: what each model is, how far it is from the null model, and how alike they are."""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np

from steph_jax.checkpoints.pool import NULL, Pool, differing_dims, member_name
from steph_jax.checks import findings
from steph_jax.checks.findings import Finding, Status
from steph_jax.data.features.lookalikes import same_encoder
from steph_jax.models import task_vectors
from steph_jax.models.abmil import Architecture, Params

CHECK = "pool"
#: Cosine of theta and theta_0: models of the field that were trained from theta_0 have 0.95 and
#: more, two random starts have 0.
_UNRELATED, _DOUBTFUL = 0.2, 0.5
#: Times the median distance of all members.
_FAR = 3.0
#: Cosine of two task vectors of one and the same training.
_SAME = 0.999


@dataclasses.dataclass(frozen=True)
class Member:
    """A model of the pool compared with theta_0.

    Attributes:
        name: its name.
        architecture: its dimensions.
        task_vector: theta - theta_0, the encoder's tensors in one vector.
        distance: its length over that of theta_0.
        cosine: of theta and theta_0.
        feature_encoder: that made the features it was fitted on, where training knew it; else "".
    """

    name: str
    architecture: Architecture
    task_vector: np.ndarray
    distance: float
    cosine: float
    feature_encoder: str


def check_pool(
    pool: Pool,
    used: tuple[str, ...],
    feature_dim: int | None,
    *,
    feature_encoder: str = "",
    encoder: str = "mil_encoder",
    task_vectors_used: bool = True,
) -> list[Finding]:
    """Looks at theta_0 and at every member.

    Args:
        pool: the pool, which must exist.
        used: names of the members that the run merges.
        feature_dim: D of the target's features, if known.
        feature_encoder: name of the encoder that made them, if known.
        encoder: the parts that distances are about; see `task_vectors.PARTS`.
        task_vectors_used: whether the run takes differences to theta_0, so that models that are
            not descended from it are of no use.

    Raises:
        FileNotFoundError: no pool.
    """
    results: list[Finding] = []
    names = pool.names()
    absent = [name for name in used if name not in names]
    if absent:
        text = f"{pool.root}: models that the run needs are not there ({len(absent)})"
        advice = "import them with convert_torch_ckpt.py, or train them with method abmil"
        results.append(findings.error(CHECK, text, advice, absent))
    null = findings.attempt(CHECK, results, pool.null)
    if null is None:
        return results
    results.append(_described(NULL, null.architecture, feature_dim))
    theta_0 = _flat(null.params, encoder)
    if not np.isfinite(theta_0).all():
        text = f"{pool.root / NULL}: NaN or infinity in its parameters"
        return [*results, findings.error(CHECK, text, "import it again")]
    datasets = pool.members()
    every = [member_name(dataset, fold) for dataset, folds in datasets.items() for fold in folds]
    members = []
    for name in every:
        is_used = name in used
        member, problem = _member(pool, name, null.architecture, theta_0, encoder)
        if member and feature_encoder and member.feature_encoder:
            problem = _other_encoder(member, feature_encoder)
        if problem:
            results.append(problem if is_used else _as_warning(problem))
        if member:
            members.append(member)
    relations = _relations(pool.root, members, used)
    if not task_vectors_used:
        relations = [_unused(finding) for finding in relations]
    return [*results, *relations]


def _described(name: str, architecture: Architecture, feature_dim: int | None) -> Finding:
    """What a model is, and whether features of a size can be put into it."""
    values = dataclasses.asdict(architecture)
    text = f"{name}: {architecture.pooling}, {_dims(architecture)}"
    if feature_dim is not None and feature_dim != architecture.feature_dim:
        text += f"; but the target's features have D = {feature_dim}"
        advice = "use features of the encoder the pool was fitted on"
        return findings.error(CHECK, text, advice, **values, features_dim=feature_dim)
    return findings.ok(CHECK, text, **values)


def _dims(a: Architecture) -> str:
    attention = f", A = {a.attention_dim}" if a.has_attention else ""
    return f"D = {a.feature_dim}, E = {a.embed_dim}{attention}, T = {a.num_bins}"


def _as_warning(problem: Finding) -> Finding:
    return dataclasses.replace(
        problem,
        status=min(problem.status, Status.WARNING),
        message=f"{problem.message} (not used by this run)",
    )


def _flat(theta: Params, encoder: str) -> np.ndarray:
    """The tensors of a part of an ABMIL tree in one vector."""
    leaves = jax.tree.leaves(task_vectors.parts_of(theta, encoder))
    return np.concatenate([np.ravel(np.asarray(leaf)) for leaf in leaves])


def _member(
    pool: Pool, name: str, expected: Architecture, theta_0: np.ndarray, encoder: str
) -> tuple[Member | None, Finding | None]:
    """A member, or what is wrong with it."""
    path = pool.root / name
    problems: list[Finding] = []
    model = findings.attempt(CHECK, problems, lambda: pool.model(name))
    if model is None:
        return None, problems[0]
    if model.kind != "abmil":
        text = f"{path}: expected an ABMIL model, found one of kind {model.kind!r}"
        return None, findings.error(CHECK, text, "store it under another name")
    differences = differing_dims(model.architecture, expected)
    if differences:
        text = f"{path.name} and {NULL} have other dimensions: {', '.join(differences)}"
        advice = "use models fitted on features of one encoder"
        return None, findings.error(CHECK, text, advice, **dataclasses.asdict(model.architecture))
    theta = _flat(model.params, encoder)
    if not np.isfinite(theta).all():
        text = f"{path}: NaN or infinity in its parameters"
        return None, findings.error(CHECK, text, "its training has failed; make it again")
    difference = theta - theta_0
    null_norm, norm = float(np.linalg.norm(theta_0)), float(np.linalg.norm(theta))
    cosine = float(theta @ theta_0) / (null_norm * norm) if null_norm and norm else 0.0
    distance = float(np.linalg.norm(difference)) / null_norm if null_norm else float("inf")
    fitted_on = str(model.metadata.get("encoder", ""))
    return Member(path.name, model.architecture, difference, distance, cosine, fitted_on), None


def _other_encoder(member: Member, feature_encoder: str) -> Finding | None:
    """A finding where a member was fitted on features of another encoder than the target's."""
    if same_encoder(member.feature_encoder) == same_encoder(feature_encoder):
        return None
    text = (
        f"{member.name}: fitted on features of the encoder {member.feature_encoder}, but the "
        f"target's features are of {feature_encoder}"
    )
    return findings.error(CHECK, text, "use models and features of one encoder")


def _relations(root: pathlib.Path, members: list[Member], used: tuple[str, ...]) -> list[Finding]:
    """Every member's place in the pool, and the cosine similarities of the task vectors."""
    if not members:
        return []
    stacked = {"task_vectors": np.stack([member.task_vector for member in members])}
    cosines = np.asarray(task_vectors.cosine_matrix(stacked), np.float64)
    if len(members) > 1 and all(member.cosine < _DOUBTFUL for member in members):
        text = (
            f"{root}: no member is descended from {NULL} (cosines of theta and theta_0 up to "
            f"{max(member.cosine for member in members):.2f})"
        )
        advice = (
            f"{NULL} is another start than theirs: import the null model they were trained from"
        )
        names, with_null = [m.name for m in members], [m.cosine for m in members]
        return [findings.error(CHECK, text, advice, names, cosines_with_null=with_null)]
    results = []
    for i, member in enumerate(members):
        distances = np.array([other.distance for j, other in enumerate(members) if j != i])
        problem = _place(member, distances)
        results.append(problem if member.name in used else _unused(problem))
    return [*results, _similarities(members, cosines), *_twins(members, cosines)]


def _unused(finding: Finding) -> Finding:
    return finding if finding.status is Status.OK else _as_warning(finding)


def _place(member: Member, distances: np.ndarray) -> Finding:
    """A member's distance to the null model compared with the others'."""
    text = (
        f"{member.name}: {_dims(member.architecture)}; "
        f"distance to {NULL} {member.distance:.3g} of its length, "
        f"cosine with it {member.cosine:.3f}"
    )
    advice = "import or train it again, from this null model"
    values: dict[str, Any] = {"distance": member.distance, "cosine": member.cosine}
    if member.cosine < _UNRELATED:
        return findings.error(CHECK, f"{text}: not descended from {NULL}", advice, **values)
    if member.cosine < _DOUBTFUL:
        return findings.warning(CHECK, f"{text}: hardly descended from {NULL}", advice, **values)
    if not member.distance:
        return findings.warning(CHECK, f"{text}: it is the null model itself", advice, **values)
    if len(distances) > 2 and member.distance > _FAR * np.median(distances):
        return findings.warning(
            CHECK,
            f"{text}: {member.distance / np.median(distances):.1f} times as far as the others",
            "was it trained from this null model, and as long as the others?",
            **values,
            median_distance=float(np.median(distances)),
        )
    return findings.ok(CHECK, text, **values)


def _similarities(members: list[Member], cosines: np.ndarray) -> Finding:
    values: dict[str, Any] = {"names": [m.name for m in members], "cosines": cosines.tolist()}
    upper = cosines[np.triu_indices(len(members), 1)]
    text = f"task vectors of {len(members)} members"
    if upper.size:
        text += f": cosine similarities {upper.min():.2f} to {upper.max():.2f}"
    return findings.ok("task vectors", text, **values)


def _twins(members: list[Member], cosines: np.ndarray) -> list[Finding]:
    """Members that are one model under two names."""
    pairs = [
        (i, j)
        for i, j in zip(*np.triu_indices(len(members), 1), strict=True)
        if cosines[i, j] > _SAME
    ]
    if not pairs:
        return []
    text = f"members with the same task vector ({len(pairs)})"
    names = [f"{members[i].name} and {members[j].name}" for i, j in pairs]
    alike = [float(cosines[pair]) for pair in pairs]
    advice = "one of them has a wrong name"
    return [findings.warning("task vectors", text, advice, names, pair_cosines=alike)]


def matrix(results: list[Finding]) -> list[str]:
    """The cosine similarities as aligned lines, from the finding that holds them."""
    values = [finding.values for finding in results if "cosines" in finding.values]
    if not values or len(values[0]["names"]) < 2:
        return []
    names, cosines = values[0]["names"], values[0]["cosines"]
    width = max(map(len, names))
    lines = ["cosine similarities of task vectors"]
    for i, (name, row) in enumerate(zip(names, cosines, strict=True), 1):
        lines.append(f"{i:3} {name:{width}} " + " ".join(f"{value:5.2f}" for value in row))
    return [*lines, f"{'':{width + 4}} " + " ".join(f"{i:5}" for i in range(1, len(names) + 1))]
