"""Templates to self-contained pages: every style, script and image is in the file itself."""

import base64
import io

import jinja2
import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

GREY = "#7a7a7a"  # readable on white and on black: figures have no background of their own
STYLE = {
    "font.size": 10,
    "text.parse_math": False,  # answers may have dollar signs
    "svg.hashsalt": "avqa",  # so that equal figures are equal files
    "svg.fonttype": "none",
    "savefig.transparent": True,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
} | {f"{name}color": GREY for name in ("text.", "axes.label", "axes.edge", "xtick.", "ytick.", "grid.")}
WEBP_QUALITY = 60

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("pipeline.reporting"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **parts) -> str:
    """A page from templates/<template>; what it needs is in `parts`."""
    return _ENVIRONMENT.get_template(template).render(**parts)


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of width × height inches with one plot, legible on a light and on a dark page."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def legend(axis: Axes, **place) -> None:
    """A legend in the figure's style."""
    with matplotlib.rc_context(STYLE):
        axis.legend(frameon=False, labelcolor=GREY, **place)


def svg(figure: Figure) -> str:
    """A figure as a data URI."""
    file = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(file, format="svg", dpi=144, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode()}"


def webp(image: Image.Image) -> str:
    """An image as a data URI."""
    file = io.BytesIO()
    image.save(file, "webp", quality=WEBP_QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
