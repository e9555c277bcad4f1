"""What all HTML pages share: how templates are rendered, and the styles that go into a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from avfewshot.reports.text import printable

TEMPLATES = Path(__file__).resolve().parent / "templates"


def environment() -> jinja2.Environment:
    """Templates that escape whatever they show, and in which a name that is missing is an error.

    Text that is no markup is made printable too: ids and labels come from others and may hold anything.
    """
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=False,
        auto_reload=False,
    )


def style(*names: str) -> Markup:
    """Style sheets of the package, one after the other, to be put into a page."""
    return Markup("".join((TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def _visible(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
