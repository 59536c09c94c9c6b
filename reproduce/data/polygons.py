"""The little geometry that outlines of drawn objects take: cut to a rectangle, area, bounds.

Only +, -, x and / of IEEE doubles enter, in a fixed order, so the numbers are the same on every machine.
"""

from __future__ import annotations

Point = tuple[float, float]
"""x and y in pixels from the image's corner: the pixel in column i reaches from i to i + 1."""
Polygon = tuple[Point, ...]
"""Its corners, once round; the last is joined to the first."""


def clipped(polygon: Polygon, *, width: float, height: float) -> Polygon:
    """The part of `polygon` within (0, 0, width, height), cut at one side after the other (Sutherland and
    Hodgman, 1974).

    Where more than one piece remains, edges on the rectangle's side join them; they enclose nothing.
    """
    for axis, limit, sign in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        polygon = _cut(polygon, axis, limit, sign)
    return polygon


def _cut(polygon: Polygon, axis: int, limit: float, sign: float) -> Polygon:
    """The part on one side of a line: coordinate `axis` at least `limit` where `sign` is 1, at most where it
    is -1."""
    kept: list[Point] = []
    for start, end in zip(polygon, (*polygon[1:], *polygon[:1]), strict=True):
        before, after = sign * (start[axis] - limit), sign * (end[axis] - limit)
        if before >= 0:
            kept.append(start)
        if (before < 0) != (after < 0):
            across = 1 - axis
            crossing = start[across] + (end[across] - start[across]) * (before / (before - after))
            kept.append((limit, crossing) if axis == 0 else (crossing, limit))
    return tuple(kept)


def area(polygon: Polygon) -> float:
    """Enclosed area in pixels, at least 0, by the sum over its edges (the shoelace formula)."""
    twice = 0.0
    for (x, y), (next_x, next_y) in zip(polygon, (*polygon[1:], *polygon[:1]), strict=True):
        twice += x * next_y - next_x * y
    return abs(twice) / 2


def bounds(polygon: Polygon) -> tuple[float, float, float, float]:
    """left, top, right and bottom."""
    xs, ys = zip(*polygon, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
