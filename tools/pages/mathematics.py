"""Formulas as pictures inside the page: no script, no font and no other host is needed to read."""

import html
import re
from decimal import Decimal
from xml.etree import ElementTree

from ziamath.zmath import Latex

# What pymdownx.arithmatex makes of $...$ and $$...$$.
_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[\[(](?P<latex>.*?)\\[\])]</(?P=tag)>', re.DOTALL
)
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_SIZE = 20.0  # pixels that an em has in the drawing


def with_formulas(page: str) -> str:
    """A page's HTML with its formulas drawn.

    Args:
      page: HTML in which formulas stand as arithmatex leaves them.

    Returns:
      The same with an SVG for each, in the text's size and colour, labelled with its LaTeX.

    Raises:
      ValueError: a formula that cannot be drawn; the message names it.
    """
    # In a table a formula has room: its fractions and sums are as large as on a line of their own.
    page = _CELL.sub(lambda cell: _FORMULA.sub(lambda match: _drawn(match["latex"]), cell[0]), page)
    return _FORMULA.sub(_placed, page)


def _placed(match: re.Match[str]) -> str:
    if match["tag"] == "span":
        return _drawn(match["latex"], is_inline=True)
    return f'<div class="formula-line">{_drawn(match["latex"])}</div>'


def _drawn(escaped: str, *, is_inline: bool = False) -> str:
    latex = html.unescape(escaped).strip()
    # Bars that know their side would be drawn as tall as the whole line.
    plain_bars = re.sub(r"\\[lr]vert\b", "|", latex)
    try:
        formula = Latex(plain_bars, size=_SIZE, color="currentColor", inline=is_inline)
        drawing = formula.svgxml()
    except Exception as error:
        raise ValueError(f"the formula {latex!r} cannot be drawn: {error}") from error
    width, height = (float(drawing.attrib[side]) for side in ("width", "height"))
    drawing.attrib.update(
        {
            "class": "formula",
            "role": "img",
            "aria-label": latex,
            "width": _em(width),
            "height": _em(height),
            "style": f"vertical-align: {_em(formula.getyofst())}",
        }
    )
    return ElementTree.tostring(drawing, encoding="unicode")


def _em(pixels: float) -> str:
    return f"{Decimal(f'{pixels / _SIZE:.3f}').normalize():f}em"
