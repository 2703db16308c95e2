"""The theme: gradio's variables in our colours. Fonts are the system's, so nothing is fetched.

The palette is Okabe and Ito's, which colour-blind people can tell apart, adjusted for contrast on light and
dark backgrounds. Where two colours meet, stripes or shapes carry the same information.
"""

from __future__ import annotations

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).parent / "assets"

SANS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Cascadia Mono", "DejaVu Sans Mono", "monospace")

_OCEAN = gr.themes.Color(
    name="ocean",
    c50="#eef6fb",
    c100="#d8eaf5",
    c200="#b1d5eb",
    c300="#7db8db",
    c400="#4497c6",
    c500="#0f77ad",
    c600="#0a6394",
    c700="#0a4f76",
    c800="#0b3f5d",
    c900="#0b3148",
    c950="#071f2e",
)
_STONE = gr.themes.Color(
    name="stone",
    c50="#f8f8f6",
    c100="#f0f0ed",
    c200="#e2e3df",
    c300="#cbcdc9",
    c400="#9da2a3",
    c500="#6b7377",
    c600="#4f575c",
    c700="#3a4247",
    c800="#22292e",
    c900="#171d21",
    c950="#0f1417",
)


_COLOURS = {
    "body_background_fill": "var(--ls-paper)",
    "body_text_color": "var(--ls-ink)",
    "body_text_color_subdued": "var(--ls-soft)",
    "background_fill_primary": "var(--ls-card)",
    "background_fill_secondary": "var(--ls-sunk)",
    "border_color_primary": "var(--ls-rule)",
    "block_background_fill": "var(--ls-card)",
    "block_border_color": "var(--ls-rule)",
    "block_label_background_fill": "transparent",
    "block_label_text_color": "var(--ls-soft)",
    "block_title_text_color": "var(--ls-ink)",
    "block_info_text_color": "var(--ls-soft)",
    "input_background_fill": "var(--ls-field)",
    "input_border_color": "var(--ls-rule)",
    "input_border_color_focus": "var(--ls-accent)",
    "button_primary_background_fill": "var(--ls-accent)",
    "button_primary_background_fill_hover": "var(--ls-accent-deep)",
    "button_primary_text_color": "var(--ls-on-accent)",
    "button_secondary_background_fill": "var(--ls-sunk)",
    "button_secondary_text_color": "var(--ls-ink)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_selected": "transparent",
    "checkbox_label_text_color_selected": "var(--ls-ink)",
    "checkbox_background_color": "var(--ls-field)",
    "checkbox_background_color_selected": "var(--ls-accent)",
    "checkbox_border_color": "var(--ls-line)",
    "checkbox_border_color_selected": "var(--ls-accent)",
    "slider_color": "var(--ls-accent)",
}
"""Gradio's colour variables. Our own variables switch between light and dark."""

_MEASURES = {
    "block_border_width": "1px",
    "block_shadow": "none",
    "block_label_border_width": "0px",
    "block_title_text_weight": "600",
    "input_border_width": "1px",
}


def make_theme() -> gr.themes.Base:
    """Return the theme, light and dark."""
    theme = gr.themes.Base(
        primary_hue=_OCEAN,
        secondary_hue=_OCEAN,
        neutral_hue=_STONE,
        font=SANS,
        font_mono=MONO,
        radius_size=gr.themes.sizes.radius_md,
    )
    both = {f"{name}{ending}": value for name, value in _COLOURS.items() for ending in ("", "_dark")}
    return theme.set(**both, **_MEASURES)
