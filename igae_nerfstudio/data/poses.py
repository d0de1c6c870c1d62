"""Camera poses as a dataset states them, in double precision: what is wrong with them, and how far away they are."""

from __future__ import annotations

from typing import Any, Sequence

import numpy as np
from jaxtyping import Float

from igae_nerfstudio.errors import InputError

TOLERANCE = 0.01
"""How far a rotation may be from orthonormal: lengths of its columns, and cosines between them."""
FAR = 16
"""Positions are far away where their centre is so many times their extent from the origin: there float32 has steps of
a millionth of the extent."""
OFF_ANY_SCENE = 1e4
"""Distance from the origin at which the scene boxes of formats that are not centred hold nothing."""


def checked_poses(
    names: Sequence[str], matrices: Sequence[Any], where: str, remedy: str | None = None
) -> Float[np.ndarray, "num_poses 4 4"]:
    """Camera-to-world matrices (N, 4, 4), double, of which every one is a rigid motion.

    Args:
        names: of the frames, for messages.
        matrices: of 3 x 4 or 4 x 4 numbers each, as JSON or COLMAP gives them.
        where: the file or dataset, for messages.
        remedy: instead of the one that belongs to what is wrong.

    Raises:
        InputError: a matrix is none, is not finite, is mirrored or is no rotation; names the first such frame.
    """
    faults = [(name, fault) for name, fault in zip(names, map(_fault, matrices)) if fault is not None]
    if not faults:
        return np.stack([_square(np.array(matrix, dtype=np.float64)) for matrix in matrices])
    (name, (reason, mend)), others = faults[0], len(faults) - 1
    if remedy is None:
        remedy = mend if others + 1 == len(names) else f"{mend}, or remove the frame"
    too = f"; {others} more frame{'s' * (others > 1)} of {len(names)} cannot be used either" * (others > 0)
    raise InputError(f"the pose of {name} in {where} {reason}{too}; {remedy}")


def _square(pose: np.ndarray) -> np.ndarray:
    return pose if len(pose) == 4 else np.concatenate([pose, [[0.0, 0.0, 0.0, 1.0]]])


def _fault(matrix: Any) -> tuple[str, str] | None:
    """What is wrong with a matrix, and what mends it."""
    rows = "write four rows of four numbers"
    try:
        pose = np.array(matrix, dtype=np.float64)
    except (TypeError, ValueError):
        return "is no matrix of numbers", rows
    if pose.shape not in ((3, 4), (4, 4)):
        return f"has {' x '.join(map(str, pose.shape)) or 'one'} numbers instead of 4 x 4", rows
    if not np.isfinite(pose).all():
        return ("holds NaN" if np.isnan(pose).any() else "is infinite"), "give it finite numbers"
    pose, last = _square(pose), [0, 0, 0, 1]
    if not np.allclose(pose[3], last, atol=1e-3):
        transposed = np.allclose(pose[:, 3], last, atol=1e-3)
        return "has a last row other than 0 0 0 1", "transpose it" if transposed else "write 0 0 0 1 there"
    lengths = np.linalg.norm(pose[:3, :3], axis=0)
    if lengths.min() < 1e-9:
        return "has a rotation with a column of zeros", "write its rotation"
    axes = pose[:3, :3] / lengths
    if np.linalg.det(axes) < 0:
        return "is mirrored (determinant -1)", "negate the axis that its converter has flipped"
    skew = np.abs(axes.T @ axes - np.eye(3)).max()
    if skew > TOLERANCE:
        nearest = "put the nearest rotation in its place (U V^T of its singular value decomposition)"
        return f"has a rotation whose columns are not perpendicular (cosine {skew:.2g})", nearest
    if np.abs(lengths - 1).max() > TOLERANCE:
        found = " and ".join(f"{length:.4g}" for length in sorted({round(length, 3) for length in lengths}))
        return f"has a rotation with columns of length {found} instead of 1", "divide each by its length"
    return None


def check_extent(poses: Float[np.ndarray, "num_poses 4 4"], where: str) -> None:
    """Raise an InputError where two or more cameras are all at one point."""
    positions = poses[:, :3, 3]
    if len(positions) > 1 and np.ptp(positions, axis=0).max() <= 1e-9 * np.abs(positions).max():
        x, y, z = positions[0]
        raise InputError(
            f"all {len(positions)} cameras of {where} are at one point ({x:g}, {y:g}, {z:g}), where photos show no "
            "depth; take photos from several places, and give each camera its own position"
        )


def far_centre(poses: Float[np.ndarray, "num_poses 4 4"], centred_later: bool) -> Float[np.ndarray, "3"] | None:
    """The centre of positions that float32 cannot tell apart well, as those of maps (UTM); None where it can.

    Args:
        poses: camera-to-world matrices.
        centred_later: the dataparser centres them itself, so that centring them before changes nothing.
    """
    positions = poses[:, :3, 3]
    centre = positions.mean(axis=0).astype(np.float32).astype(np.float64)
    distance, extent = np.linalg.norm(centre), np.linalg.norm(positions - centre, axis=-1).max()
    if len(poses) < 2 or distance <= FAR * extent or not (centred_later or distance > OFF_ANY_SCENE):
        return None
    return centre
