"""Geometry of a synthetic chest: organs as distance functions, vessels and airways as trees of tapered tubes.

All positions are in millimetres of one atlas: origin in the middle of the chest, x to the patient's right,
y to the front, z to the head (RAS+ in NIfTI). This module does not depend on voxels, except that a tree grows down
to a smallest radius, which the caller derives from the voxel size.

The trees follow Murray's law of minimum work:
    C. D. Murray, "The physiological principle of minimum work. I", PNAS 12:207 (1926): at a bifurcation
    r_parent^3 = r_child1^3 + r_child2^3;
    C. D. Murray, "The physiological principle of minimum work applied to the angle of branching of arteries",
    J. Gen. Physiol. 9:835 (1926): the thicker child bends less,
    cos(angle_1) = (r_0^4 + r_1^4 - r_2^4) / (2 r_0^2 r_1^2).
The branches grow towards the volume that they supply, as in M. H. Tawhai et al., "CT-based geometry analysis
and finite element models of the human and ovine bronchial tree", J. Appl. Physiol. 97:2310 (2004): points
fill the lung, each bifurcation divides them between its children, and each child heads for its own share.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fusionseg.data.synthetic.shapes import Array, Segment, ellipsoid, polyline, superellipse

Blocked = Callable[[Array], Array]  # (..., 3) positions in mm -> (...) bool, True for an occupied position

TAPER = 0.98  # end radius over start radius of a segment that branches again
SHARE = (0.36, 0.64)  # of the parent's flow, for the first child: asymmetric, as real trees are
LENGTH_PER_RADIUS = (4.0, 6.5)  # a branch is about three times as long as it is thick


@dataclass(frozen=True, slots=True)
class Chest:
    """Proportions of one patient. Distances are positive inside the named organ, in mm near its surface."""

    half_width: float = 124.0
    half_depth: float = 84.0
    apex: float = 132.0
    diaphragm: float = -100.0
    heart_scale: float = 1.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Chest:
        """Draw the proportions of a patient."""
        return cls(
            half_width=rng.uniform(118, 128), half_depth=rng.uniform(80, 88), apex=rng.uniform(124, 138),
            diaphragm=rng.uniform(-108, -92), heart_scale=rng.uniform(0.9, 1.08),
        )  # fmt: skip

    def narrowing(self, z: Array) -> Array:
        """Width of the rib cage at height z relative to its widest: 1 below the hilum, near 0 at the apex."""
        return np.sqrt(1 - np.clip(z / self.apex, 0, 0.999) ** 2.5)

    def body(self, x: Array, y: Array, z: Array) -> Array:
        """Distance inside the skin."""
        shoulders = 1 - 0.3 * np.clip((z - 80) / 100, 0, 1) ** 2
        rho = superellipse(x, y + 8, self.half_width + 28, self.half_depth + 34, 2.3)
        return (shoulders - rho) * (self.half_depth + 34)

    def abdomen(self, x: Array, y: Array, z: Array) -> Array:
        """Distance below the diaphragm."""
        dome = 1 - ((np.abs(x) - 62) / 75) ** 2 - (y / 95) ** 2
        return (self.diaphragm + 46 * dome + 6 * np.sign(x) - z) * 0.8

    def heart(self, x: Array, y: Array, z: Array) -> Array:
        """Distance inside the heart."""
        scale = self.heart_scale
        return ellipsoid(x, y, z, (-22, 22, -48), (52 * scale, 42 * scale, 46))

    def mediastinum(self, x: Array, y: Array, z: Array) -> Array:
        """Distance inside the space between the lungs."""
        return (1 - superellipse(x + 3, y, 27, 92, 2.0)) * 27 + 0 * z

    def passage(self, x: Array, y: Array, z: Array) -> Array:
        """Distance inside the space of hilar vessels: lungs and mediastinum without heart, spine, aorta, abdomen."""
        rho = superellipse(x, y, self.half_width, self.half_depth, 2.4)
        inside = (self.narrowing(z) - rho) * self.half_depth
        spine = np.hypot(x, y + 74) - 23
        aorta = np.maximum(np.hypot(x + 22, y + 50) - 13, z - 45)
        return np.minimum.reduce(
            np.broadcast_arrays(inside, spine, aorta, -self.heart(x, y, z) - 3, -self.abdomen(x, y, z))
        )

    def lungs(self, x: Array, y: Array, z: Array) -> Array:
        """Distance inside the lungs."""
        return np.minimum(self.passage(x, y, z), -self.mediastinum(x, y, z))


def pulmonary_arteries(chest: Chest, min_radius: float, rng: np.random.Generator) -> list[Segment]:
    """Trunk, left and right pulmonary artery, then both lungs down to `min_radius` (mm): one tree."""
    fork = _near(rng, -11, 0, 17)
    trunk = _tube(_near(rng, -18, 38, -20), fork, rng.uniform(14.0, 15.5))
    tree = [trunk]
    share = rng.uniform(0.52, 0.58)  # the right lung is larger
    _tube_onto(tree, 0, _near(rng, 34, -2, 11), share)
    _tube_onto(tree, 0, _near(rng, -42, -14, 20), 1 - share)
    tips = [(1, _supply(chest, +1, rng)), (2, _supply(chest, -1, rng))]
    _grow(tree, tips, chest, min_radius, rng)
    return tree


def pulmonary_veins(chest: Chest, min_radius: float, rng: np.random.Generator, blocked: Blocked) -> list[Segment]:
    """Four trees, upper and lower on each side, that drain into the left atrium."""
    tree: list[Segment] = []
    tips = []
    for side in (+1, -1):
        supply = _supply(chest, side, rng)
        low = supply[:, 2] < np.quantile(supply[:, 2], 0.5)
        for part, height in ((~low, -2.0), (low, -26.0)):
            atrium = np.array([-3 + side * 16, -22, -16.0])
            hilum = _near(rng, -3 + side * 37, -16 if height > -10 else -32, height)
            tips.append((len(tree), supply[part]))
            tree.append(_tube(atrium, hilum, rng.uniform(6.5, 8.0)))
    _grow(tree, tips, chest, min_radius, rng, blocked)
    return tree


def airways(chest: Chest, min_radius: float, rng: np.random.Generator, blocked: Blocked) -> list[Segment]:
    """Trachea and bronchi; the radii are those of the lumen."""
    carina = _near(rng, 0, -26, 36)
    tree = [_tube(np.array([0.0, -22.0, 260.0]), carina, rng.uniform(8.0, 9.5))]
    tree[0].end_radius = tree[0].start_radius
    _tube_onto(tree, 0, _near(rng, 33, -24, 4), 0.55)
    _tube_onto(tree, 0, _near(rng, -41, -30, 0), 0.45)
    tips = [(1, _supply(chest, +1, rng)), (2, _supply(chest, -1, rng))]
    _grow(tree, tips, chest, min_radius, rng, blocked)
    return tree


def aorta(rng: np.random.Generator) -> list[Segment]:
    """Ascending aorta, arch and descending aorta."""
    ascending, arch = [(6, 24, -24), (11, 25, 15)], [(6, 16, 48), (-8, -12, 60), (-20, -42, 46)]
    descending = [(-22, -50, 20), (-20, -50, -260)]
    return polyline(np.array(ascending + arch + descending) + rng.normal(0, 1, 3), rng.uniform(10.5, 12.5))


def superior_vena_cava(rng: np.random.Generator) -> list[Segment]:
    """The superior vena cava."""
    return polyline(np.array([(24, 20, -20), (27, 19, 40), (22, 14, 75)]) + rng.normal(0, 1, 3), 7.5)


def ribs_and_sternum(chest: Chest) -> list[Segment]:
    """Ten pairs of ribs just outside the cavity, falling towards the front, and a flat sternum."""
    segments = []
    for rib, height in enumerate(np.linspace(118, -80, 10)):
        # The lowest ribs are short: they do not reach the sternum.
        angle = np.linspace(0.1, 0.85 if rib < 7 else 0.6, 20) * np.pi
        z = height - 55 * angle / np.pi
        wide = np.maximum(chest.narrowing(z), 0.35)
        x = (wide * chest.half_width + 5) * np.sin(angle) ** (2 / 2.4)
        y = -(wide * chest.half_depth + 5) * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** (2 / 2.4)
        for side in (+1, -1):
            segments += polyline(np.stack([side * x, y, z], axis=1), 4.2)
    front = chest.half_depth + 6
    for x_sternum in (-10.0, 0.0, 10.0):
        segments += polyline(np.array([(x_sternum, front, -50), (x_sternum, front, 40)]), 6.0)
    return segments


def _near(rng: np.random.Generator, x: float, y: float, z: float) -> Array:
    return np.array([x, y, z], dtype=float) + rng.normal(0, 1.2, 3)


def _tube(start: Array, end: Array, radius: float, parent: int = -1) -> Segment:
    return Segment(start, end, radius, TAPER * radius, parent)


def _tube_onto(tree: list[Segment], parent: int, end: Array, share: float) -> None:
    """Add a child that carries `share` of the parent's flow. Flow is proportional to the cube of the radius."""
    tree.append(_tube(tree[parent].end, end, tree[parent].end_radius * share ** (1 / 3), parent))


def _supply(chest: Chest, side: int, rng: np.random.Generator, num_points: int = 6000) -> Array:
    """(n, 3) points that fill one lung evenly, off its surface; `side` +1 is the patient's right."""
    box = rng.uniform((0, -90, -130), (130, 90, 140), (num_points * 4, 3)) * (side, 1, 1)
    inside = box[chest.lungs(*box.T) > 5]
    return inside[:num_points]


def _unit(vector: Array) -> Array:
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)


def _grow(
    tree: list[Segment],
    tips: list[tuple[int, Array]],
    chest: Chest,
    min_radius: float,
    rng: np.random.Generator,
    blocked: Blocked | None = None,
) -> None:
    """Branch every tip until a child is thinner than `min_radius`.

    A segment has two children or none, so Murray's law holds at every bifurcation of the finished list. The tree grows
    breadth first: thick branches take their positions before thin ones.

    Args:
        tips: index into `tree`, and the points that the tip supplies.
        blocked: positions that another organ occupies.
    """
    queue = deque(tips)
    while queue:
        index, supply = queue.popleft()
        stem = tree[index]
        children = _bifurcate(stem, index, supply, chest, min_radius, rng, blocked)
        if children is None:
            stem.end_radius = max(min(min_radius, stem.start_radius), 0.6 * stem.start_radius)
            continue
        for child, part in children:
            queue.append((len(tree), part))
            tree.append(child)


def _bifurcate(
    stem: Segment,
    index: int,
    supply: Array,
    chest: Chest,
    min_radius: float,
    rng: np.random.Generator,
    blocked: Blocked | None,
) -> list[tuple[Segment, Array]] | None:
    share = float(rng.uniform(*SHARE))
    radius_1, radius_2 = (stem.end_radius * part ** (1 / 3) for part in (share, 1 - share))
    if min(radius_1, radius_2) < min_radius or len(supply) < 8:
        return None
    ahead = _unit(stem.end - stem.start)
    # The children separate along the direction across the stem in which the supplied volume is widest.
    across = supply - supply.mean(axis=0)
    across = across - np.outer(across @ ahead, ahead)
    sideways = np.linalg.eigh(across.T @ across)[1][:, -1]
    first = across @ sideways <= np.quantile(across @ sideways, share)
    children = []
    for radius, other, part, towards in (
        (radius_1, radius_2, supply[first], -sideways),
        (radius_2, radius_1, supply[~first], sideways),
    ):
        cosine = (stem.end_radius**4 + radius**4 - other**4) / (2 * (stem.end_radius * radius) ** 2)
        bend = float(np.arccos(np.clip(cosine, -1, 1)))
        end = _place(stem.end, ahead, towards, bend, radius, part.mean(axis=0), chest, rng, blocked)
        if end is None:
            return None
        children.append((_tube(stem.end, end, radius, index), part))
    return children


def _place(
    start: Array,
    ahead: Array,
    towards: Array,
    bend: float,
    radius: float,
    target: Array,
    chest: Chest,
    rng: np.random.Generator,
    blocked: Blocked | None,
) -> Array | None:
    """Find the end of a child branch; None if no candidate fits into the lung.

    Murray's angle gives the bend of a branch, but does not keep it in the lung. The candidates lean more and more
    towards the centre of the supplied points, turn about the stem, and get shorter. The first that fits is taken.
    """
    normal = np.cross(ahead, towards)
    turn = np.array([0.0, 0.6, -0.6]) + rng.normal(0, 0.15)
    plane = np.cos(turn)[:, None] * towards + np.sin(turn)[:, None] * normal
    ideal = np.cos(bend) * ahead + np.sin(bend) * plane  # (turn, 3)
    pull = np.array([0.3, 0.55, 0.8, 1.0])[:, None, None]
    heading = _unit((1 - pull) * ideal + pull * _unit(target - start)).reshape(-1, 3)
    length = radius * rng.uniform(*LENGTH_PER_RADIUS) * np.array([1.0, 0.75, 0.5])
    steps = length[None, :, None, None] * heading[:, None, None, :] * np.array([0.3, 0.6, 0.8, 1.0])[:, None]
    path = (start + steps).reshape(-1, 4, 3)  # (candidate, sample along it, 3)
    x, y, z = np.moveaxis(path, -1, 0)
    fits = (chest.passage(x, y, z).min(axis=1) > radius) & (chest.lungs(x[:, -1], y[:, -1], z[:, -1]) > radius + 1)
    if not fits.any():
        return None
    cost = np.zeros(len(path)) if blocked is None else blocked(path[:, 1:]).sum(axis=1).astype(float)
    return path[np.argmin(np.where(fits, cost, np.inf)), -1]
