"""Shapes described by words, drawn onto an image.

A drawing is a series of steps, ``box red 0 0 4 9; tree green 20 0 0.5``, each a word, its colour and its
numbers. The x axis points right and the y axis up. The words are

- ``box``, ``oval``: left bottom right top; ``cap``, ``cup``: the upper and the lower half of an oval
- ``poly``: x y x y …; ``line``: width x y x y …; ``arc``: width left bottom right top start end (degrees
  from the right, clockwise)
- ``frame``: a window without its panes; left bottom right top
- ``sky``: two colours, from the top to the bottom of ``left bottom right top``
- ``grid``: columns rows dx dy, followed by one step to draw at each grid point
- any name in shapes.toml: x y and, if other than 1, a scale; its colour stands for every ``*`` in it
"""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageColor, ImageDraw

_SHAPES = Path(__file__).with_name("shapes.toml")
_BANDS = 24
_WORDS = frozenset({"box", "oval", "cap", "cup", "poly", "line", "arc", "sky", "frame"})


@dataclass(frozen=True)
class Step:
    """One step of a drawing."""

    word: str
    colours: tuple[str, ...]
    numbers: tuple[float, ...]
    repeated: "Step | None" = None


@functools.cache
def steps(drawing: str) -> tuple[Step, ...]:
    """Parse the steps of a drawing.

    Examples
    --------
    >>> steps("box red 0 0 4 9")
    (Step(word='box', colours=('red',), numbers=(0.0, 0.0, 4.0, 9.0), repeated=None),)
    """
    return tuple(_step(part.split()) for part in drawing.split(";") if part.strip())


def _step(words: list[str]) -> Step:
    if words[0] == "grid":
        return Step("grid", (), tuple(map(float, words[1:5])), _step(words[5:]))
    colours = tuple(word for word in words[1:] if not (word[0].isdigit() or word[0] in "-."))
    return Step(words[0], colours, tuple(map(float, words[1 + len(colours) :])))


@functools.cache
def shapes() -> dict[str, tuple[Step, ...]]:
    """Return the steps of every shape in shapes.toml."""
    named = tomllib.loads(_SHAPES.read_text(encoding="utf-8"))
    return {name: steps(drawing) for name, drawing in named.items()}


class Pen:
    """Pen that draws steps onto an image.

    Parameters
    ----------
    draw
        Drawing interface of an RGB image, with alpha.
    x, y
        Position of (0, 0), in pixels from the left and from the top.
    x_unit, y_unit
        Pixels per unit.
    """

    def __init__(self, draw: ImageDraw.ImageDraw, x: float, y: float, x_unit: float, y_unit: float) -> None:
        self._draw, self._x, self._y, self._x_unit, self._y_unit = draw, x, y, x_unit, y_unit

    def at(self, x: float, y: float, x_scale: float = 1, y_scale: float = 1) -> "Pen":
        """Return a pen with its origin at a point of this one, and with scaled units."""
        return Pen(self._draw, *self._point(x, y), self._x_unit * x_scale, self._y_unit * y_scale)

    def draw(self, drawing: tuple[Step, ...] | str, colour: str = "") -> None:
        """Draw steps one after the other; `colour` replaces every ``*``."""
        for step in steps(drawing) if isinstance(drawing, str) else drawing:
            colours = [colour if name == "*" else name for name in step.colours]
            if step.repeated is not None:
                columns, rows, dx, dy = step.numbers
                for row in range(int(rows)):
                    for column in range(int(columns)):
                        self.at(column * dx, row * dy).draw((step.repeated,), colour)
            elif step.word in _WORDS:
                self._draw_word(step.word, [ImageColor.getrgb(name) for name in colours], step.numbers)
            else:
                # shapes keep their proportions even if the image around them is stretched
                unit = min(self._x_unit, self._y_unit) * (step.numbers[2] if len(step.numbers) > 2 else 1)
                placed = Pen(self._draw, *self._point(*step.numbers[:2]), unit, unit)
                placed.draw(shapes()[step.word], colours[0] if colours else colour)

    def _draw_word(self, word: str, colours: list[tuple[int, ...]], numbers: tuple[float, ...]) -> None:
        fill = colours[0]
        match word:
            case "box":
                self._draw.rectangle(self._bounds(numbers), fill)
            case "oval":
                self._draw.ellipse(self._bounds(numbers), fill)
            case "cap":
                self._draw.chord(self._bounds(numbers), 180, 360, fill)
            case "cup":
                self._draw.chord(self._bounds(numbers), 0, 180, fill)
            case "poly":
                self._draw.polygon(self._points(numbers), fill)
            case "line":
                self._draw.line(self._points(numbers[1:]), fill, self._width(numbers[0]), joint="curve")
            case "arc":
                width = self._width(numbers[0])
                self._draw.arc(self._bounds(numbers[1:5]), numbers[5], numbers[6], fill, width)
            case "frame":
                self._frame(fill, numbers)
            case "sky":
                self._sky(colours[0], colours[1], self._bounds(numbers))

    def _frame(self, fill: tuple[int, ...], numbers: tuple[float, ...]) -> None:
        left, bottom, right, top = numbers
        width = self._width(1.2)
        self._draw.rectangle(self._bounds(numbers), outline=fill, width=width)
        for ends in (
            ((left + right) / 2, bottom, (left + right) / 2, top),
            (left, (bottom + top) / 2, right, (bottom + top) / 2),
        ):
            self._draw.line(self._points(ends), fill, width)

    def _sky(self, top: tuple[int, ...], bottom: tuple[int, ...], bounds: tuple[float, ...]) -> None:
        x0, y0, x1, y1 = bounds
        for band in range(_BANDS):
            fill = tuple(
                (above * (_BANDS - 1 - band) + below * band) // (_BANDS - 1)
                for above, below in zip(top, bottom, strict=True)
            )
            edges = (y0 + (y1 - y0) * (band + end) / _BANDS for end in (0, 1))
            self._draw.rectangle((x0, next(edges), x1, next(edges)), fill)

    def _point(self, x: float, y: float) -> tuple[float, float]:
        return self._x + x * self._x_unit, self._y - y * self._y_unit

    def _points(self, numbers: tuple[float, ...]) -> list[tuple[float, float]]:
        return [self._point(x, y) for x, y in zip(numbers[::2], numbers[1::2], strict=True)]

    def _bounds(self, numbers: tuple[float, ...]) -> tuple[float, float, float, float]:
        left, bottom, right, top = numbers
        return (*self._point(left, top), *self._point(right, bottom))

    def _width(self, width: float) -> int:
        return max(1, round(width * min(self._x_unit, self._y_unit)))
