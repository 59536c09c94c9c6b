"""Geometry of the outlines of drawn objects: clipping to a rectangle, area, bounds.

It uses only +, -, x and / of IEEE doubles in a fixed order, so the numbers are the same on every machine.
"""

from __future__ import annotations

Point = tuple[float, float]
"""Coordinates x and y in pixels from the image's corner. The pixel in column i reaches from i to i + 1."""
Polygon = tuple[Point, ...]
"""Corners of a polygon in order; an edge joins the last to the first."""


def clipped(polygon: Polygon, *, width: float, height: float) -> Polygon:
    """Clip `polygon` to (0, 0, width, height), one side after the other (Sutherland and Hodgman, 1974).

    If more than one piece remains, edges along the rectangle's sides join the pieces. These edges enclose
    nothing.
    """
    for axis, limit, sign in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        polygon = _cut(polygon, axis, limit, sign)
    return polygon


def _cut(polygon: Polygon, axis: int, limit: float, sign: float) -> Polygon:
    """Clip a polygon at a line, keeping one side of it.

    Points with coordinate `axis` >= `limit` are kept if `sign` is 1, those with <= `limit` if it is -1.
    """
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
    """Return the enclosed area in pixels, at least 0, by the shoelace formula."""
    twice = 0.0
    for (x, y), (next_x, next_y) in zip(polygon, (*polygon[1:], *polygon[:1]), strict=True):
        twice += x * next_y - next_x * y
    return abs(twice) / 2


def bounds(polygon: Polygon) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom."""
    xs, ys = zip(*polygon, strict=True)
    return min(xs), min(ys), max(xs), max(ys)
