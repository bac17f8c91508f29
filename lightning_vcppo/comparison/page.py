"""Write a comparison as one HTML page that loads nothing, as `vcppo report` does."""

from __future__ import annotations

from pathlib import Path

from lightning_vcppo.comparison import curves, output
from lightning_vcppo.comparison.cautions import warnings
from lightning_vcppo.comparison.contrasts import Comparison
from lightning_vcppo.report.drawing import color
from lightning_vcppo.report.page import offline_page


def render(comparison: Comparison) -> str:
    """Write the page of a comparison.

    Raises:
        ImportError: If plotly or jinja2 is not installed.
    """
    values = "Points are seeds; bars are means with t intervals."
    differences = "Paired by seed, with t intervals; 0 is no difference."
    figures = [
        ("Value of each run", values, curves.draw_values),
        ("Differences", differences, curves.draw_contrasts),
        (
            comparison.curve_metric,
            "Thin lines are seeds, strong ones their interquartile means. Bands are the 95 % "
            "bootstrap intervals of these over seeds; with few seeds they are too narrow.",
            curves.draw_curves,
        ),
        (
            "Response length",
            "A fall by half is the signature of the collapse; accuracy follows it down.",
            curves.draw_lengths,
        ),
    ]
    drawn = [(title, text, draw(comparison)) for title, text, draw in figures]
    kept = [(title, text, spec) for title, text, spec in drawn if spec is not None]
    return offline_page(
        Path(__file__).with_name("compare.html"),
        [spec for _, _, spec in kept],
        title=output.title(comparison),
        reference=comparison.reference,
        figures=[(title, text) for title, text, _ in kept],
        tables=[
            ("Arms", output.ARM_COLUMNS, output.arm_rows(comparison)),
            ("Differences", output.CONTRAST_COLUMNS, output.contrast_rows(comparison)),
        ],
        colors={arm.name: color(place) for place, arm in enumerate(comparison.arms)},
        notes=output.notes(comparison),
        warnings=warnings(comparison),
        settings=comparison.settings,
        arms=[
            (arm.name, [(seed, run.where) for seed, run in arm.runs.items()])
            for arm in comparison.arms
        ],
    )
